"""Finds the volumes to segment, and the path of each result.

Models of several channels take nnU-Net's files of one channel each, `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ..., as
one volume; so do models of one channel in nnU-Net's folders, whose masks are then called as the case.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..image_files import is_image_name, is_left_out
from ..prediction_files import Job, check_targets, found_files, nothing_found
from .volume_opening import VolumeReadError, is_volume_file, volume_name

CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)  # of a name without its suffix
NNUNET_FOLDERS = re.compile(r"images(Tr|Ts|Val)")
MASK = ".nii.gz"
ENDINGS = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")  # that `is_found` takes


@dataclass(frozen=True)
class VolumeJob(Job):
    """A volume and the paths of its results.

    Args:
        source: The file, or that of the first channel.
        folder: The output folder.
        name: Path of the mask relative to `folder`, which ends in .nii.gz; other results have it below a subfolder.
        channels: The files of all channels if each has its own, with gaps where one is missing. Default: ().
    """

    channels: tuple[Path | None, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files of the volume."""
        return tuple(file for file in self.channels if file) or (self.source,)

    def what_to_read(self) -> Path | list[Path]:
        """The file, or the files of all channels. Raises VolumeReadError if one is missing."""
        missing = [f"_{index:04d}" for index, file in enumerate(self.channels) if file is None]
        if missing:
            raise VolumeReadError(
                f"{self.source} is one of {len(self.channels)} channels, of which {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
                "missing. Give the files of all channels, or leave the case out."
            )
        return list(self.channels) or self.source

    def with_ending(self, kind: str, ending: str) -> Path:
        """Returns the path of a result in the subfolder `kind` that ends otherwise."""
        target = self.target(kind)
        return target.with_name(target.name.removesuffix(MASK) + ending)

    def picture(self, kind: str) -> Path:
        """Returns the path of the picture in the subfolder `kind`."""
        return self.with_ending(kind, ".png")

    def array(self) -> Path:
        """Returns the path of the probabilities of all classes."""
        return self.with_ending("probabilities", ".npy")

    def polygons(self) -> Path:
        """Returns the path of the polygons, which volumes do not have."""
        return self.with_ending("polygons", ".geojson")


def find_volume_jobs(
    volumes: list[str],
    output: str,
    num_channels: int = 1,
    on_error: Callable[[OSError], None] | None = None,
) -> list[VolumeJob]:
    """Finds the volumes to segment.

    Args:
        volumes: Files, and folders that are searched for NIfTI files. The file of the first channel stands for those
            of all channels beside it.
        output: The output folder; volumes inside it are not segmented.
        num_channels: Channels of the model.
        on_error: Called with the error of each folder that cannot be listed. By default, it is raised.

    Raises:
        ValueError: There are no volumes, or outputs would collide with each other or with an input.
    """
    folder = Path(output)
    found = found_files(volumes, folder, on_error, is_found)
    if not found:
        raise nothing_found("volume", "image", volumes, ENDINGS, is_image_name)
    cases: dict[tuple[Path, str], dict[int, Path]] = {}
    for file in found:
        if channel := channel_of(file, num_channels):
            case, index = channel
            if index in (same := cases.setdefault((file.parent, case), {})):
                raise ValueError(
                    f"{same[index]} and {file} are the same channel of {case}. Remove one of them."
                )
            same[index] = file
    grouped = {key: files for key, files in cases.items() if 0 in files}
    jobs = {
        files[0]: tuple(files.get(index) or beside(files[0], index) for index in range(num_channels))
        for files in grouped.values()
    }
    rest = {file for files in grouped.values() for file in files.values()} - set(jobs)
    names = {
        file: name.with_name(channel_of(file, num_channels)[0] if file in jobs else volume_name(file))
        for file, name in found.items()
        if file not in rest
    }
    shared = Counter(names.values())
    made = []
    for file, name in names.items():
        whole = name if shared[name] == 1 else found[file]
        made.append(VolumeJob(file, folder, f"{whole}{MASK}", jobs.get(file, ())))
    check_targets(made)
    return made


def is_found(name: str) -> bool:
    """Whether a file of a folder is a volume; of a pair of .hdr and .img, the first is."""
    return is_volume_file(name) and not name.lower().endswith(".img") and not is_left_out(name)


def beside(first: Path, index: int) -> Path | None:
    """The file of another channel in the folder of the first one, with the same ending; None if there is none."""
    name = volume_name(first)
    path = first.with_name(f"{CHANNEL.fullmatch(name)[1]}_{index:04d}{first.name[len(name) :]}")
    return path if path.is_file() else None


def channel_of(file: Path, num_channels: int) -> tuple[str, int] | None:
    """The case and the number of the channel of a file of one channel; None for other files."""
    match = CHANNEL.fullmatch(volume_name(file))
    is_case = num_channels > 1 or NNUNET_FOLDERS.fullmatch(file.parent.name)
    if not match or not is_case or int(match[2]) >= num_channels:
        return None
    return match[1], int(match[2])
