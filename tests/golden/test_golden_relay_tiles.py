"""Grids of windows against those of the relay token authors' code."""

from itertools import product

import pytest
import torch
from golden_cases import golden_cases

from contextseg.processing.tiling import center_grid, sliding_grid

CASES = [case for case in golden_cases("relay") if case.id == "none" or case.values[0].kind == "tiling"]


def tiles_and_parts(height, width, tile, overlap, split, **_):
    """(x0, y0, x1, y1) of each window, and of its part that counts, for cells of a pixel.

    The authors count rows from the bottom; without overlap, our first window begins at the top.
    """
    size, window = (height, width), (tile, tile)
    if split == "test":
        grid = center_grid(size, window, overlap)
        rows, columns = grid.starts
    else:
        grid = sliding_grid(size, window, overlap, "constant", pads=True)
        rows, columns = [height - tile - start for start in grid.starts[0]], grid.starts[1]
    (margin, _), (part, _) = grid.margin, grid.part
    parts = [(x, y, x + part, y + part) for y, x in product(rows, columns)]
    return [(x - margin, y - margin, x - margin + tile, y - margin + tile) for x, y, *_ in parts], parts


def touches(box, height, width):
    return box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0


@pytest.mark.parametrize("case", CASES)
def test_windows_lie_where_the_authors_lie(case):
    for index, given in enumerate(case.description["constructor"]["grids"]):
        tiles, parts = (case.tensors[f"out.{name}_{index}"].tolist() for name in ("tiles", "kept"))
        # The authors also run windows of which nothing in the image counts.
        expected = {
            (tuple(tile), tuple(part))
            for tile, part in zip(tiles, parts, strict=True)
            if touches(part, given["height"], given["width"])
        }
        assert set(zip(*tiles_and_parts(**given), strict=True)) == expected, given


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_central_parts_cover_a_map_once(overlap):
    for size in product((1, 7, 33, 64), repeat=2):
        grid, covered = center_grid(size, (32, 16), overlap), torch.zeros(size)
        for place in product(*grid.starts):
            under = tuple(
                slice(max(0, start), max(0, start + part))
                for start, part in zip(place, grid.part, strict=True)
            )
            covered[under] += 1
        assert covered.eq(1).all(), size
