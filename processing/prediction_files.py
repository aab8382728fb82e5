"""Finds the image files to segment, and the path of each result."""

import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .atomic_write import atomic_write
from .image_files import IMAGE_SUFFIXES, files_below, is_image_name, same_name
from .image_opening import ImageReadError, explaining, identified, opened_file
from .plain_text import counted
from .prediction_maps import IMAGE_MAPS
from .volumes.volume_opening import is_volume_file

PICTURES = ("overlays", "attention", "grad-cam")  # subfolders of the output folder
RASTER_MASK = ".tif"
PIXELS_AT_ONCE = 1 << 26  # of all images between reading and the end of writing; a single one may be larger


@dataclass(frozen=True)
class Job:
    """An image file and the paths of its results.

    Args:
        source: The image file.
        folder: The output folder.
        name: Path of the mask relative to `folder`; other results have it below a subfolder. That of a raster
            ends in .tif, any other in .png.
    """

    source: Path
    folder: Path
    name: str

    @property
    def image(self) -> str:
        """Path of the image file relative to the given folder in which it was found, with slashes."""
        return (Path(self.name).parent / self.source.name).as_posix()

    def target(self, kind: str = "") -> Path:
        """Returns the path of the mask, or of the result in the subfolder `kind`."""
        return self.folder / kind / self.name

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files of the image."""
        return (self.source,)

    @property
    def is_raster(self) -> bool:
        """Whether the image is a raster, whose mask keeps its place on Earth."""
        return self.name.endswith(RASTER_MASK)

    def picture(self, kind: str) -> Path:
        """Returns the path of the picture in the subfolder `kind`."""
        return self.target(kind).with_suffix(".png")

    def array(self) -> Path:
        """Returns the path of the probabilities of all classes."""
        return self.target("probabilities").with_suffix(".npy")

    def polygons(self) -> Path:
        """Returns the path of the polygons."""
        return self.target("polygons").with_suffix(".geojson")

    def results(self) -> list[Path]:
        """Returns the paths of all results that there may be."""
        maps = [self.target(kind) for kind in ("", *IMAGE_MAPS)]
        return [*maps, *map(self.picture, PICTURES), self.array(), self.polygons()]


class PartedImage(Protocol):
    """A large image in parts. One process calls `begin`, each `predict` for its own, and then the first `write`."""

    num_parts: int

    def begin(self) -> list[int]:
        """Prepares the work; returns which parts are to do, without those that an earlier run has finished."""
        ...

    def predict(self, parts: Sequence[int]) -> None:
        """Predicts some parts."""
        ...

    def write(self) -> None:
        """Writes the results when all parts are predicted."""
        ...


class FilePredictor(ABC):
    """Predicts image files with one model, and writes the results.

    A file passes `load`, `predict` and `write`. For different files, `load` and `write` run in other threads at
    the same time; `predict` is always called in the same thread, with one file after the other.
    """

    done: ClassVar[str]  # what is done with an image, such as "segmented"
    unit: ClassVar[str] = "image"  # what a file holds

    @abstractmethod
    def load(self, job: Job) -> Any:
        """Reads an image file and prepares it for the model."""

    @abstractmethod
    def predict(self, job: Job, loaded: Any) -> Any:
        """Applies the model to what `load` returned."""

    @abstractmethod
    def write(self, job: Job, predicted: Any) -> Any:
        """Writes the image's own results, and returns its record for the results that all images share."""

    def run(self, job: Job) -> Any:
        """Predicts one image file from reading to writing; returns its record."""
        return self.write(job, self.predict(job, self.load(job)))

    @abstractmethod
    def targets(self, job: Job) -> list[Path]:
        """The files that `write` writes."""

    def pixels_of(self, job: Job) -> int:
        """The number of pixels in the header of an image file, or its size in bytes; 0 if it cannot be read."""
        path = str(job.source)
        try:
            with explaining(path), opened_file(path, PIXELS_AT_ONCE) as file:
                return math.prod(identified(file, path).size)
        except ImageReadError:
            return os.path.getsize(path) if os.path.isfile(path) else 0

    def parts_of(self, job: Job) -> "PartedImage | None":  # noqa: ARG002
        """Returns a large image in parts that processes can divide, or None for one that is predicted as a whole."""
        return None

    def earlier(self, jobs: Sequence[Job]) -> dict[Job, Any]:
        """Returns the jobs whose results an earlier run has written completely, with their records."""
        return {job: None for job in jobs if all(target.is_file() for target in self.targets(job))}

    def finish(self, records: Sequence[Any], part: int | None = None) -> None:  # noqa: B027 - most have nothing to write
        """Writes the results that all images share, if there are any.

        Args:
            records: What `write` returned, in the order of the images.
            part: If these are the records of one of several processes, which was stopped: its index. They are
                then written to a file of its own, which `earlier` also reads. Default: None, all records.
        """


def write_part(path: Path, part: int | None, write: Callable[[Path], Any]) -> None:
    """Writes a file that all images share, whole or not at all.

    Args:
        path: The file. Its folder is created if needed.
        part: The process whose images alone are written, to a file beside `path`. With None, those of all are
            written to `path`, and files of single processes are removed.
        write: Writes the file of the given path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path if part is None else path.with_name(f"{path.stem}.part-{part}{path.suffix}")
    with atomic_write(target) as temporary:
        write(temporary)
    if part is None:
        for other in part_files(path):
            other.unlink()


def part_files(path: Path) -> list[Path]:
    """The files of single processes beside `path` that exist."""
    return sorted(path.parent.glob(f"{escape(path.stem)}.part-*{path.suffix}"))


def find_jobs(
    images: list[str],
    output: str,
    on_error: Callable[[OSError], None] | None = None,
    is_raster: Callable[[Path], bool] | None = None,
) -> list[Job]:
    """Finds the images to segment.

    Args:
        images: Image files, and folders that are searched for image files, see `image_files`.
        output: The output folder; images inside it are not segmented.
        on_error: Called with the error of each folder that cannot be listed. By default, it is raised.
        is_raster: Whether a file is a raster, which gets a GeoTIFF. By default, no file is.

    Returns:
        A job per image file, also of those in the given folders.

    Raises:
        ValueError: There are no images, or outputs would collide with each other or with an input.
    """
    folder = Path(output)
    found = found_files(images, folder, on_error)
    if not found:
        raise nothing_found("image", "volume", images, sorted(IMAGE_SUFFIXES), is_volume_file)
    shared = Counter(name.with_suffix("") for name in found.values())
    jobs = []
    for file, name in found.items():
        suffix = RASTER_MASK if is_raster and is_raster(file) else ".png"
        is_alone = shared[name.with_suffix("")] == 1
        jobs.append(Job(file, folder, str(name.with_suffix(suffix) if is_alone else f"{name}{suffix}")))
    check_targets(jobs)
    return jobs


def nothing_found(
    wanted: str, other: str, paths: Sequence[str], endings: Sequence[str], is_other: Callable[[str], bool]
) -> ValueError:
    """Returns the error for folders without files of the wanted kind.

    Args:
        wanted: What a file should hold: "image" or "volume".
        other: What it may hold instead.
        paths: The folders.
        endings: Of names of files of the wanted kind.
        is_other: Whether a file name is that of the other kind.
    """
    others = [file for path in paths for file in files_below(Path(path), is_other, on_error=lambda _: None)]
    text = f"there are no {wanted}s in {', '.join(paths)}"
    if not others:
        return ValueError(f"{text}. Known endings: {', '.join(endings)}.")
    return ValueError(
        f"{text}, but {counted(len(others), other, f'{other}s')}, such as {others[0].name}. The model takes {wanted}s: use one "
        f"that takes {other}s."
    )


def found_files(
    paths: Sequence[str],
    output: Path,
    on_error: Callable[[OSError], None] | None = None,
    is_wanted: Callable[[str], bool] | None = None,
) -> dict[Path, Path]:
    """Returns each file to segment, and its path relative to the given folder in which it was found.

    Args:
        paths: Files, which are all taken, and folders that are searched.
        output: The output folder, which is not searched.
        on_error: Called with the error of each folder that cannot be listed. By default, it is raised.
        is_wanted: Which file names are taken from folders. Default: those of images.

    Raises:
        ValueError: The results cannot be written to the output folder, or would lie among the files.
    """
    check_output(output)
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if os.path.isdir(path):
            inside = images_outside(path, output, on_error, is_wanted)
            found.update((file, file.relative_to(path)) for file in inside)
        else:
            found[path] = Path(path.name)
    return found


def check_output(folder: Path) -> None:
    """Raises ValueError if the output folder is a file, or cannot be written to."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"the results cannot be written to {folder}: {nearest} is a file. Choose another --output."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"the results cannot be written to {folder}: permission denied. Choose another --output."
        )


def images_outside(
    folder: Path,
    output: Path,
    on_error: Callable[[OSError], None] | None,
    is_wanted: Callable[[str], bool] | None = None,
) -> list[Path]:
    """The images below a folder, without earlier results in the output folder.

    Raises ValueError if the results would lie among the images, where the next run would segment them.
    """
    real, results = os.path.realpath(folder), os.path.realpath(output)
    if real == results:
        raise ValueError(
            f"the results would lie among the images in {folder}, and the next run would segment them. "
            "Choose another --output."
        )
    files = files_below(folder, is_wanted or is_image_name, on_error)
    if not Path(results).is_relative_to(real):
        return files
    return [file for file in files if not Path(os.path.realpath(file.parent)).is_relative_to(results)]


def check_targets(jobs: list[Job]) -> None:
    """Raises ValueError if two images have the same output path, or if an output would replace an input."""
    inputs = {os.path.realpath(source) for job in jobs for source in job.sources}
    owners: dict[str, Path] = {}
    for job in jobs:
        for image in job.results():
            if os.path.realpath(image) in inputs:
                raise ValueError(
                    f"a result for {job.source} would overwrite the image {image}. Choose another --output."
                )
        target = same_name(str(job.target()))
        if target in owners:
            raise ValueError(
                f"{owners[target]} and {job.source} would both become {job.target()}. "
                "Predict them one after the other with different --output folders."
            )
        owners[target] = job.source
