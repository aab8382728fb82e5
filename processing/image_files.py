"""Finds the image files below a folder: the one list of endings, and the one rule for what is left out.

Hidden files and folders, and those that tools make (thumbnails, recycle bins, copies by Jupyter), are left out.
Links to folders are followed, except those that lead back to a folder on the way. A link to nothing, or a named
pipe, that is called like an image is found too, so that reading it is an error rather than a gap.
"""

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".webp", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".npy", ".vrt"),
}
TOOL_MADE = {  # folders, in lower case; names that begin with a dot are left out anyway
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
}
MOST_WAYS = 100  # to one folder, by links; a few nested links can make millions


def image_files(
    folder: Path,
    on_error: Callable[[OSError], None] | None = None,
    is_wanted: Callable[[str], bool] | None = None,
) -> list[Path]:
    """The image files below a folder, sorted by path.

    Args:
        folder: The folder to search, with its subfolders.
        on_error: Called with the error of each folder that cannot be listed. By default, it is raised.
        is_wanted: Whether a file name is that of a file to find. Default: `is_image_name`.

    Raises:
        OSError: If a folder cannot be listed.
        ValueError: If links lead to one folder in more than 100 ways.
    """
    return files_below(folder, is_wanted or is_image_name, on_error)


def files_below(
    folder: Path, takes: Callable[[str], bool], on_error: Callable[[OSError], None] | None = None
) -> list[Path]:
    """As `image_files`, with the files whose names `takes` accepts."""
    return sorted(path for path in _files(folder, on_error or _raise) if takes(path.name))


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of an image, in upper or lower case, and is not left out."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_left_out(name)


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden, or made by a tool for its own use."""
    return name.startswith(".") or name.lower() in TOOL_MADE


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not left out, sorted by name."""
    return [path for path in sorted(folder.iterdir()) if not is_left_out(path.name) and path.is_dir()]


def same_name(name: str) -> str:
    """The name in Unicode normal form C: macOS stores "é" as "e" and an accent, other systems as one letter."""
    return unicodedata.normalize("NFC", name)


def _files(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Everything below a folder but folders and what is left out."""
    ways: Counter[str] = Counter()
    waiting: list[tuple[Path, str, tuple[str, ...]]] = [(folder, os.path.realpath(folder), ())]
    while waiting:
        folder, real, crossed = waiting.pop()  # crossed: the real folders of the links on the way
        ways[real] += 1
        if ways[real] > MOST_WAYS:
            raise ValueError(f"links lead to '{real}' in more than {MOST_WAYS} ways. Remove some of them.")
        for entry in _entries(folder, on_error):
            path = folder / entry.name
            if not _is_folder(entry):
                if entry.is_symlink() and not path.suffix and not path.exists():
                    on_error(FileNotFoundError(errno.ENOENT, "is a link to nothing", str(path)))
                yield path
            elif not entry.is_symlink():
                waiting.append((path, os.path.join(real, entry.name), crossed))
            elif not _leads_back(target := os.path.realpath(path), (*crossed, real)):
                waiting.append((path, target, (*crossed, real)))


def _entries(folder: Path, on_error: Callable[[OSError], None]) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_left_out(entry.name)]
    except OSError as error:
        on_error(error)
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_back(target: str, on_the_way: tuple[str, ...]) -> bool:
    """Whether a link leads to one of these folders, or to a folder around it."""
    return any(Path(real).is_relative_to(target) for real in on_the_way)


def _raise(error: OSError) -> None:
    raise error
