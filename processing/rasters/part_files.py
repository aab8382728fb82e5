"""Results of a large raster in bands of rows, each in files of its own: work can be stopped, continued and divided.

The files lie in a work folder beside the result. A band is finished when all its files have their final names, so
that a process which is killed loses the bands that it is at, and processes which share the folder see what the
others have finished. `record.json` in the folder says what the bands depend on; bands of other work are dropped.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from ..atomic_write import MEGABYTE, replace_flushed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RECORD, LOCK = "record.json", "lock"
LOCKS: dict[Path, IO] = {}  # of work folders whose work this process has begun


@contextmanager
def locks_released() -> Iterator[None]:
    """Context manager of a command, after which others may go on with what it has begun, even if it was stopped."""
    try:
        yield
    finally:
        for folder in list(LOCKS):
            LOCKS.pop(folder).close()


class Layer(NamedTuple):
    """One of the results that a band has: its type, and the shape of one row, such as (W,) or (W, K)."""

    dtype: str
    row: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.row)


class PartFiles:
    """The bands of a raster's results in a work folder.

    Args:
        folder: The work folder.
        layers: The results, by name.
        height: Rows of the raster.
        starts: First rows of the bands, in ascending order; the first is 0.
    """

    def __init__(self, folder: Path, layers: Mapping[str, Layer], height: int, starts: Sequence[int]) -> None:
        self.folder, self.layers, self.height = folder, dict(layers), height
        self.bands = list(pairwise([*starts, height]))  # (first row, row after the last)

    def begin(self, record: Mapping[str, Any]) -> None:
        """Makes the work folder, or keeps it if it is of the same work. One process calls this, before all others.

        Args:
            record: Everything that the results depend on, as values for JSON.

        Raises:
            ValueError: If another run is at this work, the folder holds something else, or the disk has less free space than the bands that are to do need.
            OSError: If the folder cannot be made.
        """
        layers = {name: [layer.dtype, *layer.row] for name, layer in self.layers.items()}
        text = json.dumps({**record, "layers": layers, "bands": self.bands}, sort_keys=True, indent=1)
        self._check_ours()
        self._keep_others_out()
        if self._text() != text:
            for path in self.folder.iterdir():
                if path.name not in (LOCK, RECORD):
                    path.unlink()
            temporary = self.folder / f"{RECORD}.writing"
            temporary.write_text(text, encoding="utf-8")
            self._replace(temporary, self.folder / RECORD)
        for left in self.folder.glob("*.writing"):  # by a process that was killed
            left.unlink()
        self._check_space()

    def to_do(self) -> list[int]:
        """Returns the indices of the bands that are not finished, in ascending order."""
        return [index for index in range(len(self.bands)) if not self.is_done(index)]

    def is_done(self, index: int) -> bool:
        """Whether the band `index` is finished."""
        start, stop = self.bands[index]
        return all(
            _size(self._path(index, name)) == (stop - start) * layer.row_bytes
            for name, layer in self.layers.items()
        )

    @contextmanager
    def writing(self, index: int) -> Iterator["BandWriter"]:
        """Context manager that yields a writer for the rows of a band, which is finished when the block ends.

        If the block raises, nothing of the band is kept.
        """
        paths = [self._path(index, name) for name in self.layers]
        temporary = [path.with_name(f"{path.name}.{os.getpid()}.writing") for path in paths]
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(path.open("wb")) for path in temporary]
                yield BandWriter(dict(zip(self.layers, files, strict=True)), self.layers)
            for source, path in zip(temporary, paths, strict=True):
                self._replace(source, path)
        finally:
            for path in temporary:
                path.unlink(missing_ok=True)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows start..stop-1 (rows, W, ...) of the layer `name`, from bands that are finished."""
        layer, pieces = self.layers[name], []
        for index, (first, last) in enumerate(self.bands):
            top, bottom = max(start, first), min(stop, last)
            if top < bottom:
                count, offset = (bottom - top) * math.prod(layer.row), (top - first) * layer.row_bytes
                values = np.fromfile(self._path(index, name), dtype=layer.dtype, count=count, offset=offset)
                pieces.append(values.reshape(bottom - top, *layer.row))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def remove(self) -> None:
        """Removes the work folder, if it exists."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.release()

    def release(self) -> None:
        """Lets other processes begin at the work, if this one has begun."""
        if lock := LOCKS.pop(self.folder, None):
            lock.close()

    def remove_if_empty(self) -> None:
        """Removes the work folder unless a band is finished or a process is at one."""
        if len(self.to_do()) == len(self.bands) and not any(self.folder.glob("*.writing")):
            self.remove()

    def _check_ours(self) -> None:
        """Raises ValueError if the folder exists and is no work folder."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else {RECORD}
        if RECORD not in names and not all(name == LOCK or name.endswith(".writing") for name in names):
            raise ValueError(
                f"{self.folder} is needed for finished rows, but holds other files. Move it, or choose another target."
            )

    def _keep_others_out(self) -> None:
        """Makes the folder, and locks it until this process removes it or ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        self.release()
        LOCKS[self.folder] = lock = (self.folder / LOCK).open("w")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self.release()
                raise ValueError(
                    f"another run is writing the same results in {self.folder}. Wait for it, or choose another target."
                ) from error  # other errors are of disks that cannot lock files

    def _replace(self, temporary: Path, path: Path) -> None:
        if len(self.bands) > 1:
            replace_flushed(temporary, path)
        else:  # the band is the whole work, so waiting for the disk would save nothing
            temporary.replace(path)

    def _path(self, index: int, name: str) -> Path:
        return self.folder / f"{index:06d}.{name}"

    def _text(self) -> str | None:
        try:
            return (self.folder / RECORD).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _check_space(self) -> None:
        rows = sum(self.bands[index][1] - self.bands[index][0] for index in self.to_do())
        needed = rows * sum(layer.row_bytes for layer in self.layers.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"the results need {needed // MEGABYTE} MB in {self.folder.parent}, and {free // MEGABYTE} MB are free. "
                "Free some space, choose another place, or ask for fewer results."
            )


class BandWriter:
    """Writes the rows of one band, from top to bottom.

    Args:
        files: The open file of each layer, by name.
        layers: The layers, by name.
    """

    def __init__(self, files: Mapping[str, BinaryIO], layers: Mapping[str, Layer]) -> None:
        self.files, self.layers = files, layers

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Writes the next rows (R, W, ...) of every layer."""
        for name, layer in self.layers.items():
            self.files[name].write(np.ascontiguousarray(rows[name], dtype=layer.dtype).data)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
