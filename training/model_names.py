"""Names of models that do not exist: answered with the folders that are there, not only with the Hub's silence."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..processing.data.pairing import listed
from ..processing.image_files import subfolders

KINDS = "Give a run folder, a model folder, or a Hub name such as 'me/model'."
FILES_OF_A_MODEL = ("config.json", "best", "last")


def check_path(name: str) -> None:
    """Raises ValueError if a name that can only be a path is not that of a folder."""
    folder = Path(name)
    if folder.is_dir():
        return
    if folder.exists():
        raise ValueError(f"{folder} is a file, not the folder of a model. {KINDS}")
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
    if looks_like_a_path or "\\" in name or holds_models(folder.parent):
        raise ValueError(f"{missing_folder(folder)} {KINDS}")


def holds_models(folder: Path) -> bool:
    """Whether a named folder holds runs or models, so that a name in it is a path."""
    return (
        folder.name != ""
        and folder.is_dir()
        and any((sub / file).exists() for sub in subfolders(folder) for file in FILES_OF_A_MODEL)
    )


def missing_folder(folder: Path) -> str:
    """A sentence that says what is missing, and what lies where it was looked for."""
    near = next(parent for parent in folder.absolute().parents if parent.is_dir())
    names = [sub.name for sub in subfolders(near)]
    close = difflib.get_close_matches(folder.name, names, n=1) if near == folder.absolute().parent else []
    meant = (
        f", did you mean {folder.with_name(close[0])}?"
        if close
        else f"; {near} holds {listed(names) or 'no folders'}."
    )
    return f"there is no folder {folder}{meant}"


@contextmanager
def explained_absence(name: str) -> Iterator[None]:
    """Context manager that says that a folder is missing, too, where the Hub does not have or answer a name."""
    try:
        yield
    except OSError as error:
        if Path(name).exists():
            raise
        answer = str(error).strip().split("\n")[0].rstrip(".")
        if "couldn't connect" in answer:
            answer = "it does not answer"
        raise ValueError(
            f"{missing_folder(Path(name))} From the Hub, no model of that name can be loaded: {answer}. {KINDS}"
        ) from error
