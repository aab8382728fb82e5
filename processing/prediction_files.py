"""Which image files are segmented, and where the result of each is written."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .image_reading import IMAGE_SUFFIXES
from .prediction_maps import IMAGE_MAPS

IMAGE_FOLDERS = ("overlays", "attention", *IMAGE_MAPS)  # below the output folder, beside the masks


@dataclass(frozen=True)
class Job:
    """One image file, and where its results go below the output folder."""

    source: Path
    folder: Path
    name: str

    def target(self, kind: str = "") -> Path:
        return self.folder / kind / self.name


def find_jobs(images: list[str], output: str) -> list[Job]:
    """The image files named, and those in the folders named, each with a mask of its own that is none of the inputs."""
    folder = Path(output)
    found: dict[Path, Path] = {}  # file -> name below the output folder
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
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not hidden


def check_targets(jobs: list[Job]) -> None:
    """Two images never share a mask, and nothing that could be written replaces an input."""
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
