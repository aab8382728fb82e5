"""Finds the image files to segment, and the path of each result."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .image_reading import IMAGE_SUFFIXES
from .prediction_maps import IMAGE_MAPS

IMAGE_FOLDERS = ("overlays", "attention", *IMAGE_MAPS)  # subfolders of the output folder


@dataclass(frozen=True)
class Job:
    """An image file and the paths of its results.

    Args:
        source: The image file.
        folder: The output folder.
        name: Path of the mask relative to `folder`; other results have it below a subfolder.
    """

    source: Path
    folder: Path
    name: str

    def target(self, kind: str = "") -> Path:
        """Returns the path of the mask, or of the result in the subfolder `kind`."""
        return self.folder / kind / self.name


def find_jobs(images: list[str], output: str) -> list[Job]:
    """Finds the images to segment.

    Args:
        images: Image files, and folders that are searched for image files.
        output: The output folder; images inside it are not segmented.

    Returns:
        A job per image file, also of those in the given folders.

    Raises:
        ValueError: There are no images, or outputs would collide with each other or with an input.
    """
    folder = Path(output)
    found: dict[Path, Path] = {}  # image file -> its path relative to the given folder
    for path in map(Path, images):
        if path.is_dir():
            inside = (
                file
                for file in sorted(path.rglob("*"))
                if is_image(file, path) and folder not in file.parents
            )
            found.update((file, file.relative_to(path)) for file in inside)
        else:
            found[path] = Path(path.name)
    if not found:
        raise ValueError(
            f"there are no images in {', '.join(images)}. Known endings: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    shared = Counter(name.with_suffix(".png") for name in found.values())
    jobs = [
        Job(
            file,
            folder,
            str(name.with_suffix(".png") if shared[name.with_suffix(".png")] == 1 else f"{name}.png"),
        )
        for file, name in found.items()
    ]
    check_targets(jobs)
    return jobs


def is_image(file: Path, folder: Path) -> bool:
    """Whether a file has the suffix of an image and is not hidden, nor in a hidden subfolder of `folder`."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not hidden


def check_targets(jobs: list[Job]) -> None:
    """Raises ValueError if two images have the same output path, or if an output would replace an input."""
    inputs = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for job in jobs:
        for image in (job.target(kind) for kind in ("", *IMAGE_FOLDERS)):
            if image.resolve() in inputs:
                raise ValueError(
                    f"a result for {job.source} would overwrite the image {image}. Choose another --output."
                )
        target = job.target()
        if target in owners:
            raise ValueError(
                f"{owners[target]} and {job.source} would both become {target}. "
                "Predict them one after the other with different --output folders."
            )
        owners[target] = job.source
