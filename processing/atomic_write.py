"""Files that are either complete or absent, also after a crash, a full disk or a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEGABYTE = 1 << 20  # bytes, for messages about free space


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary path next to `path`, and replaces `path` with it at the end.

    The block writes the file under the temporary path and closes it. The content is flushed to disk before
    the rename, so readers see the old file or the whole new one. The temporary name does not end in the
    suffix of `path`: writers that derive the format from the name need it as an argument.

    Args:
        path: The file to write. Its folder must exist.

    Raises:
        Exception: If the block raises it; `path` is then unchanged, and the temporary file is removed. An error of
            the disk names `path`, also where it has no name, such as that the disk is full.
    """
    temporary = path.with_name(path.name + ".writing")
    try:
        yield temporary
        replace_flushed(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        is_of_disk = isinstance(error, OSError) and error.errno is not None
        if is_of_disk and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def replace_flushed(temporary: Path, path: Path) -> None:
    """Flushes the closed file `temporary` to disk, then renames it to `path`."""
    with temporary.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())
    temporary.replace(path)
