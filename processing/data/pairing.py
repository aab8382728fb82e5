"""Matches image files to mask files by name, and explains what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..image_files import files_below, image_files, same_name, subfolders
from ..image_reading import Source
from ..label_maps import EQUAL_CHANNELS, NO_LABEL
from ..mask_reading import read_mask
from ..plain_text import one_line
from ..volumes.volume_opening import is_volume_file
from .class_table import FILE_NAME, example

MASKS_TO_GUESS_FROM = 20
LISTED = 5  # names listed in a message


class Pair(NamedTuple):
    """An image, its mask, and their name in messages."""

    image: Source
    mask: Source
    name: str


@dataclass(frozen=True)
class Pairing:
    """The files of two folders, matched by relative path without suffix."""

    pairs: list[Pair]
    images_without_mask: list[str]
    masks_without_image: list[str]
    folders: tuple[str, str] = ("images/", "masks/")

    @property
    def problems(self) -> list[str]:
        """Messages about files without a partner."""
        images, masks = self.folders
        sides = (
            (self.images_without_mask, "images have no mask", masks),
            (self.masks_without_image, "masks have no image", images),
        )
        case = differing_in_case(self.images_without_mask, self.masks_without_image)
        return [
            f"{len(names)} {what}: {listed(names)}. Add files of the same name to {folder}, "
            f"or move these away.{case}"
            for names, what, folder in sides
            if names
        ]


def pair_files(folder: Path) -> Pairing:
    """Pairs the files of images/ and masks/, sorted by name. Raises ValueError if there are no pairs."""
    if not (folder / "images").is_dir() or not (folder / "masks").is_dir():
        raise ValueError(missing_folders(folder))
    images, masks = (files_by_name(folder / part) for part in ("images", "masks"))
    names = sorted(images.keys() & masks.keys())
    if not images and files_below(folder / "images", is_volume_file):
        raise ValueError(volumes_for_images(folder))
    if not names:
        raise ValueError(
            f"'{folder}' has no pairs: images/ holds {len(images)} images ({listed(sorted(images.values()))}) and "
            f"masks/ {len(masks)} ({listed(sorted(masks.values()))}). "
            "Give an image and its mask the same name up to the suffix."
            + differing_in_case(*(sorted(map(str, files.values())) for files in (images, masks)))
        )
    return Pairing(
        [Pair(images[name], masks[name], name) for name in names],
        sorted(str(path.relative_to(folder)) for name, path in images.items() if name not in masks),
        sorted(str(path.relative_to(folder)) for name, path in masks.items() if name not in images),
    )


def files_by_name(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Image files below a folder by relative path without suffix, in Unicode normal form C.

    Args:
        folder: Folder that is searched with its subfolders, see `image_files`.
        suffix: End of the file names to find and to strip. By default, all image files without their suffix.

    Raises:
        ValueError: If two files have the same name.
    """
    files: dict[str, Path] = {}
    for path in image_files(folder):
        if not path.name.lower().endswith(suffix.lower()):
            continue
        name = same_name(path.relative_to(folder).as_posix())[: -len(suffix or path.suffix)]
        if name in files:
            raise ValueError(same_names(files[name], path))
        files[name] = path
    return files


def same_names(one: Path, other: Path) -> str:
    """An error message for two files of one name."""
    if one.stem != other.stem and same_name(one.stem) == same_name(other.stem):
        return (
            f"'{one}' and '{other}' have the same name in two Unicode normal forms, {ascii(one.stem)} and "
            f"{ascii(other.stem)}. Rename or remove one of them."
        )
    return f"'{other}' and '{one}' have the same name up to the suffix. Rename one of them."


def differing_in_case(images: Sequence[str], masks: Sequence[str]) -> str:
    """A sentence about an image and a mask that differ only in upper and lower case or in their folder, or nothing."""
    by_name = {same_name(Path(mask).stem).casefold(): mask for mask in masks}
    for image in images:
        if mask := by_name.get(same_name(Path(image).stem).casefold()):
            if same_name(Path(mask).stem) == same_name(Path(image).stem):
                return f" '{image}' and '{mask}' lie in different subfolders: move one of them."
            return f" '{image}' and '{mask}' differ in upper and lower case: rename one of them."
    return ""


def missing_folders(folder: Path) -> str:
    """An error message for a folder without images/ and masks/, with the folder that was probably meant."""
    if not folder.exists():
        near = next(parent for parent in folder.absolute().parents if parent.exists())
        return f"'{folder}' does not exist; '{near}' holds {contents(near)}. Check the path."
    if not folder.is_dir():
        return f"'{folder}' is a file. Give the folder that holds images/ and masks/."
    if inside := folders_of_pairs(folder):
        return f"'{folder}' has no images/ and masks/; they are in {listed([sub.name for sub in inside])}. Give '{inside[0]}'."
    if (folder.parent / "images").is_dir() and (folder.parent / "masks").is_dir():
        return f"'{folder}' is one level too deep. Give '{folder.parent}', which holds images/ and masks/."
    if (folder / "annotations.json").is_file():
        return f"'{folder}' has no masks/, but annotations.json: it is for detection. Add --task detection."
    if any(is_volume_file(path) for path in folder.iterdir()):
        return (
            f"'{folder}' holds volumes, but not in the folders images/ and labels/: {contents(folder)}. Move them there, each "
            "label under the name of its image."
        )
    return (
        f"'{folder}' must have a folder images/ and a folder masks/ with files of equal names; it holds "
        f"{contents(folder)}. Rename or move the existing files."
    )


def volumes_for_images(folder: Path) -> str:
    """Says that the files of a folder are volumes, where images are needed."""
    return f"'{folder}' holds volumes, but images are needed. Use a model for volumes, such as nnformer."


def folders_of_pairs(folder: Path) -> list[Path]:
    """The subfolders with images/ and masks/, such as those of splits."""
    return [sub for sub in subfolders(folder) if (sub / "images").is_dir() and (sub / "masks").is_dir()]


class Proposal(NamedTuple):
    """A `classes.json` that fits masks, and a sentence about what the masks contain."""

    proposal: str
    contents: str


def propose_table(sources: Sequence[Source]) -> Proposal:
    """Reads masks and proposes a `classes.json` for them."""
    masks = [read_mask(source) for source in sources]
    if any(mask.ndim == 3 for mask in masks):
        colors = '{"classes": [{"name": "background", "color": [0, 0, 0]}, {"name": "road", "color": [128, 64, 128]}]}'
        if all(mask.ndim == 3 and (mask == mask[..., :1]).all() for mask in masks):
            return Proposal(colors, f"The masks are RGB images without colors: {EQUAL_CHANNELS}")
        return Proposal(colors, "The masks contain colors, not class ids: give the color of each class.")
    ids = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)) - {NO_LABEL})
    if ids == [0, 255]:
        proposal = '{"classes": ["background", "object"], "label_map": {"0": 0, "255": 1}}'
    else:
        count = max((index for index in ids if index != 255), default=0) + 1
        proposal = example([f"class {index}" for index in range(min(count, 256))])
    return Proposal(proposal, f"The first {len(masks)} masks contain the ids {listed(ids)}.")


def missing_table(folder: Path, pairs: Sequence[Pair]) -> str:
    """An error message that proposes a `classes.json`, made from the ids of the first masks."""
    found = propose_table([pair.mask for pair in pairs[:MASKS_TO_GUESS_FROM]])
    return (
        f"no {FILE_NAME} in '{folder}' or its parent. Write one with the names of your classes, or pass its path as "
        f"--classes, for example {found.proposal}. {found.contents}"
    )


def contents(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return listed([sub.name + "/" * sub.is_dir() for sub in sorted(folder.iterdir())]) or "nothing"


def listed(names: Sequence[Any]) -> str:
    """The first names, and the number of further ones."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(one_line(str(name)) for name in names[:LISTED]) + more
