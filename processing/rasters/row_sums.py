"""Blending of windows over maps that are too large for memory.

As `tiling.blended_rows` on two axes, with other means: a strip as wide as a window slides along each row of
windows; columns that it leaves are added to what the row of windows above left there. These sums of a row of
windows are in memory if they fit, else in a temporary file, which is read and written: mapped memory would
count as the process's own. The order of the sums is the same for both, and wherever the map is entered.

Legend: K channels, R rows, d columns between the beginnings of neighboring windows, w columns of the map.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..tiling import Grid, Place, move_up, overlap_slices


class MemorySums:
    """Rows of sums in memory: a tensor (rows, K, d) for each piece of columns. Row r is in slot r modulo rows.

    Args:
        rows: Rows that are held.
        channels: K.
        widths: Columns of each piece.
        device: Where the sums are.
    """

    def __init__(self, rows: int, channels: int, widths: Sequence[int], device: torch.device) -> None:
        self.rows = rows
        self.pieces = [torch.empty(rows, channels, width, device=device) for width in widths]

    def read(self, piece: int, first: int, stop: int) -> Tensor:
        """(R, K, d), rows first..stop-1 of a piece."""
        return torch.cat([self.pieces[piece][slots] for slots in self.slots(first, stop)])

    def write(self, piece: int, first: int, values: Tensor) -> None:
        """Stores (R, K, d) as rows of a piece from `first` on."""
        slots = self.slots(first, first + len(values))
        for part, rows in zip(slots, values.split([part.stop - part.start for part in slots]), strict=True):
            self.pieces[piece][part] = rows

    def slots(self, first: int, stop: int) -> list[slice]:
        """The slots of rows first..stop-1: one slice, or two where they begin again."""
        first, count = first % self.rows, stop - first
        ends = [(first, min(first + count, self.rows)), (0, first + count - self.rows)]
        return [slice(start, end) for start, end in ends if start < end]

    def close(self) -> None:
        """Frees the memory."""
        self.pieces = []


class FileSums(MemorySums):
    """The same in a temporary file, in the folder that the environment variable TMPDIR names."""

    def __init__(self, rows: int, channels: int, widths: Sequence[int], device: torch.device) -> None:
        super().__init__(rows, channels, (), device)
        self.device, self.shapes = device, [(channels, width) for width in widths]
        self.begins = [0, *accumulate(4 * rows * channels * width for width in widths)]
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`

    def read(self, piece: int, first: int, stop: int) -> Tensor:
        """(R, K, d), rows first..stop-1 of a piece."""
        values = torch.empty(stop - first, *self.shapes[piece])
        slots = self.slots(first, stop)
        for part, rows in zip(slots, values.split([part.stop - part.start for part in slots]), strict=True):
            self.seek(piece, part.start)
            self.file.readinto(memoryview(rows.numpy()).cast("B"))
        return values.to(self.device)

    def write(self, piece: int, first: int, values: Tensor) -> None:
        """Stores (R, K, d) as rows of a piece from `first` on."""
        slots = self.slots(first, first + len(values))
        for part, rows in zip(slots, values.split([part.stop - part.start for part in slots]), strict=True):
            self.seek(piece, part.start)
            self.file.write(memoryview(rows.contiguous().cpu().numpy()).cast("B"))

    def seek(self, piece: int, slot: int) -> None:
        """Goes to a row of a piece."""
        channels, width = self.shapes[piece]
        self.file.seek(self.begins[piece] + 4 * slot * channels * width)

    def close(self) -> None:
        """Deletes the file."""
        self.file.close()


def summed_rows(
    grid: Grid, predict: Callable[[list[Place]], Iterable[Tensor]], *, first: int, memory: int, piece: int
) -> Iterator[Tensor]:
    """Yields the weighted mean of overlapping windows as pieces (K, R, w) of the map, top to bottom.

    Args:
        grid: The windows, on two axes.
        predict: As of `blended_rows`.
        first: The row of windows to begin with. Rows of the map that earlier ones cover too are wrong.
        memory: Bytes of sums that may be in memory; if there are more, all are in a file.
        piece: Most values in a piece, which has at least a row.
    """
    height, width = grid.cells
    sums, filled = None, 0
    try:
        for top, next_top in pairwise([*grid.starts[0][first:], height]):
            rows, inside = overlap_slices(top, grid.part[0], height)
            windows = predict([(top, left) for left in grid.starts[1]])
            for index, strip in enumerate(strips(grid, windows, inside)):
                sums = sums or sums_of(grid, strip, memory)
                if rows.start < filled:
                    strip[: filled - rows.start] += sums.read(index, rows.start, filled)
                sums.write(index, rows.start, strip)
            step = max(1, piece // (width * strip.shape[1]))
            for start in range(rows.start, next_top, step):
                yield means(grid, sums, start, min(start + step, next_top))
            filled = rows.stop
    finally:
        if sums is not None:
            sums.close()


def strips(grid: Grid, windows: Iterable[Tensor], rows: slice) -> Iterator[Tensor]:
    """Yields the sums (R, K + 1, d) of a row of windows, left to right; the last channel sums the weights.

    Args:
        grid: The windows.
        windows: Values (K, N, N) of the windows of a row.
        rows: Rows of these windows that are in the map.
    """
    total = None
    for (left, next_left), values in zip(pairwise([*grid.starts[1], grid.cells[1]]), windows, strict=True):
        if total is None:
            weights = grid.weights.to(values)
            total = values.new_zeros(grid.part[0], len(values) + 1, grid.part[1])
        total[:, :-1].addcmul_(values.transpose(0, 1), weights[:, None])
        total[:, -1] += weights
        yield total[rows, :, max(0, -left) : next_left - left]
        move_up(total.movedim(2, 0), next_left - left)


def sums_of(grid: Grid, strip: Tensor, memory: int) -> MemorySums:
    """Room for the sums of a row of windows, of which `strip` (R, K + 1, d) is the first piece."""
    widths, channels = piece_widths(grid), strip.shape[1]
    kind = MemorySums if sums_bytes(grid, channels - 1) <= memory else FileSums
    return kind(grid.part[0], channels, widths, strip.device)


def sums_bytes(grid: Grid, num_labels: int) -> int:
    """Bytes of the sums of a row of windows."""
    return 4 * grid.part[0] * (num_labels + 1) * grid.cells[1]


def piece_widths(grid: Grid) -> list[int]:
    """Columns that each window of a row leaves when the strip moves on."""
    return [stop - max(0, start) for start, stop in pairwise([*grid.starts[1], grid.cells[1]])]


def means(grid: Grid, sums: MemorySums, first: int, stop: int) -> Tensor:
    """(K, R, w), rows first..stop-1 of the map."""
    means, begin = None, 0
    for index, width in enumerate(piece_widths(grid)):
        values = sums.read(index, first, stop)
        if means is None:
            means = values.new_empty(values.shape[1] - 1, stop - first, grid.cells[1])
        means[..., begin : begin + width] = (values[:, :-1] / values[:, -1:]).transpose(0, 1)
        begin += width
    return means
