"""Finds the cases of a folder of volumes: the files of the channels and the label of each patient.

    imagesTr/CASE_0000.nii.gz, CASE_0001.nii.gz, ...  labelsTr/CASE.nii.gz    nnU-Net; imagesTs/, labelsTs/: test cases
    images/CASE.nii.gz                                labels/CASE.nii.gz, or masks/CASE.nii.gz

Where channels have files of their own, the last four digits are the number of the channel, and what stands before is
the name of the case, whatever dots and underscores it has. A file with all channels has them in a fourth axis.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..image_files import files_below, same_name
from ..plain_text import counted
from ..volumes.volume_reading import is_volume_file, volume_name
from .pairing import contents, differing_in_case, listed, same_names

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})", re.DOTALL)
LABEL_FOLDERS = ("labels", "masks")
TRAIN, TEST = "Tr", "Ts"  # endings of nnU-Net's folders
NIFTI = (".nii.gz", ".nii")


class VolumeCase(NamedTuple):
    """A patient or scan: its name, one file per channel or one with all of them, and its label if it has one."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass
class FoundCases:
    """The complete cases of a folder, and what is wrong with the others.

    Args:
        cases: Sorted by name.
        problems: What leaves cases out, in words. Default: nothing.
        warnings: What may be wrong, in words. Default: nothing.
    """

    cases: list[VolumeCase]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def case_folders(root: Path, part: str = TRAIN) -> tuple[Path, Path | None] | None:
    """The folder of images and that of labels, which is None if it is absent; None if there are no images.

    Args:
        root: Folder of the data.
        part: "Tr" for the cases to train on, "Ts" for the test cases of nnU-Net's layout.
    """
    places = [(root / f"images{part}", [root / f"labels{part}"])]
    if part == TRAIN:
        places.append((root / "images", [root / name for name in LABEL_FOLDERS]))
    for images, labels in places:
        if images.is_dir():
            return images, next((folder for folder in labels if folder.is_dir()), None)
    return None


def holds_volumes(folder: Path) -> bool:
    """Whether there is a volume below a folder."""
    return folder.is_dir() and bool(files_below(folder, is_volume_file))


def find_cases(
    images: Path, labels: Path | None, channel_names: Sequence[str] = (), file_ending: str | None = None
) -> FoundCases:
    """Groups the files of a folder of images into cases, and gives each its label.

    Args:
        images: Folder of the images.
        labels: Folder of the labels. None: the cases have none.
        channel_names: Names of the channels; by default, the files tell how many there are.
        file_ending: Ending of the files to take. Default: all that can be read.

    Raises:
        ValueError: If there is no complete case, or the file ending is not supported.
    """
    check_ending(file_ending)
    found = FoundCases([])
    image_files = _files_by_name(images, file_ending, found)
    label_files = {} if labels is None else _files_by_name(labels, file_ending, found)
    if not image_files:
        raise ValueError(" ".join([*found.problems, _no_volumes(images, file_ending)]))
    names, complete = set(image_files), {name: (path,) for name, path in image_files.items()}
    if _are_by_channel(image_files, label_files, images):
        grouped = _grouped(image_files, images, found)
        names, complete = set(grouped), _complete(grouped, channel_names, images, found)
    if labels is not None:
        _tell_unpaired(names, label_files, (images, labels), found)
        complete = {name: files for name, files in complete.items() if name in label_files}
    if not complete:
        raise ValueError(f"'{images.parent}' has no complete case. " + " ".join(found.problems))
    found.cases = [VolumeCase(name, complete[name], label_files.get(name)) for name in sorted(complete)]
    return found


def check_ending(file_ending: str | None) -> None:
    """Raises ValueError for files that are not NIfTI."""
    if file_ending is not None and file_ending not in NIFTI:
        raise ValueError(
            f"dataset.json has file_ending='{file_ending}', but volumes are read from {' and '.join(NIFTI)}. Save them as "
            "NIfTI, for example with SimpleITK.WriteImage; put 2-D images and their masks into images/ and masks/."
        )


def _files_by_name(folder: Path, file_ending: str | None, found: FoundCases) -> dict[str, Path]:
    """Volumes by relative path without ending, in Unicode normal form C; what is left out is told in `found`."""
    files: dict[str, Path] = {}
    paths = files_below(folder, is_volume_file)
    headers = {path.with_suffix("") for path in paths if path.suffix.lower() == ".hdr"}
    left_out, twice = [], set()
    for path in paths:
        if path.suffix.lower() == ".img" and path.with_suffix("") in headers:
            continue
        if file_ending and not path.name.lower().endswith(file_ending):
            left_out.append(str(path.relative_to(folder.parent)))
            continue
        name = same_name((path.relative_to(folder).parent / volume_name(path)).as_posix())
        if name in files:
            found.problems.append(same_names(files[name], path))
            twice.add(name)
        files[name] = path
    if left_out:
        found.warnings.append(
            f"{counted(len(left_out), 'file is', 'files are')} not read, because file_ending is {file_ending}: {listed(left_out)}. Remove them, or "
            "correct file_ending in dataset.json."
        )
    return {name: path for name, path in files.items() if name not in twice}


def _no_volumes(folder: Path, file_ending: str | None) -> str:
    return (
        f"'{folder}' has no volumes (files *{file_ending or ' and *'.join(NIFTI)}); it holds {contents(folder)}. Save the "
        "images as NIfTI, or give another folder."
    )


def _are_by_channel(images: Mapping[str, Path], labels: Mapping[str, Path], folder: Path) -> bool:
    """Whether the names of the images end with the numbers of channels."""
    if all(name in labels for name in images):
        return False
    numbers = [CHANNEL.fullmatch(name) for name in images]
    if folder.name in ("images" + TRAIN, "images" + TEST):
        return any(number and int(number["channel"]) == 0 for number in numbers)
    return all(numbers) and any(number["case"] in labels for number in numbers)


def _grouped(files: Mapping[str, Path], folder: Path, found: FoundCases) -> dict[str, dict[int, Path]]:
    """Name of a case -> number of the channel -> file."""
    grouped: dict[str, dict[int, Path]] = {}
    without = []
    for name, path in files.items():
        if number := CHANNEL.fullmatch(name):
            grouped.setdefault(number["case"], {})[int(number["channel"])] = path
        else:
            without.append(path.name)
    if without:
        found.problems.append(
            f"{counted(len(without), 'file', 'files')} of {folder.name}/ without a channel number: {listed(without)}. Rename "
            "to CASE_0000, CASE_0001 and so on."
        )
    return grouped


def _complete(
    grouped: Mapping[str, Mapping[int, Path]], names: Sequence[str], folder: Path, found: FoundCases
) -> dict[str, tuple[Path, ...]]:
    """The files of the cases that have exactly the channels of this data; the other cases are problems."""
    count = len(names) or 1 + max(number for files in grouped.values() for number in files)
    wanted = set(range(count))

    def shown(numbers: set[int]) -> str:
        texts = [f"{k:04d}" + (f", {names[k]}" if k < len(names) else "") for k in sorted(numbers)]
        return f" ({'; '.join(texts)})"

    lacking = [case + shown(missing) for case, files in grouped.items() if (missing := wanted - set(files))]
    beyond = [case + shown(more) for case, files in grouped.items() if (more := set(files) - wanted)]
    if lacking:
        found.problems.append(
            f"{counted(len(lacking), 'case lacks', 'cases lack')} files of channels in {folder.name}/: "
            f"{listed(sorted(lacking))}. Add the files, or move these cases away."
        )
    if beyond:
        found.problems.append(
            f"{counted(len(beyond), 'case has', 'cases have')} more files than the {counted(count, 'channel', 'channels')} in "
            f"dataset.json: {listed(sorted(beyond))}. Remove the files, or add the channels to channel_names."
        )
    return {
        case: tuple(files[number] for number in sorted(wanted))
        for case, files in grouped.items()
        if set(files) == wanted
    }


def _tell_unpaired(
    images: set[str], labels: Mapping[str, Path], folders: tuple[Path, Path], found: FoundCases
) -> None:
    """Adds problems about images without a label, and labels without an image."""
    sides = (
        (sorted(images - set(labels)), ("case has no label", "cases have no label"), folders[1]),
        (sorted(set(labels) - images), ("label has no image", "labels have no image"), folders[0]),
    )
    case = differing_in_case(sides[0][0], sides[1][0])
    found.problems += [
        f"{counted(len(names), *what)}: {listed(names)}. Add files of the same name to {place.name}/, or move these away.{case}"
        for names, what, place in sides
        if names
    ]
