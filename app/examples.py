"""The examples of the page: images to choose from."""

from dataclasses import dataclass
from pathlib import Path

from ..processing.failures import reason
from ..processing.image_files import image_files
from ..processing.processor_inputs import decoded_for
from ..training.stored_reading import options_of_run
from .segmenters import Segmenter
from .view import thumbnail

MOST_OF_RUN = 6
MOST_GIVEN = 24


@dataclass(frozen=True)
class Example:
    """An image to choose, and its small picture as the address of itself."""

    path: Path
    picture: str


def find_examples(given: list[str], run: str) -> list[Path]:
    """Returns the given images and those of the given folders, by default validation images of the run.

    Raises ValueError if a given folder has no images.
    """
    if not given:
        folder = options_of_run(run).get("val")
        images = Path(folder) / "images" if isinstance(folder, str) else None
        return image_files(images)[:MOST_OF_RUN] if images and images.is_dir() else []
    found: list[Path] = []
    for path in map(Path, given):
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"there are no images in {path}. Give another folder with --examples.")
        found += inside
    return found[:MOST_GIVEN]


def open_examples(paths: list[Path], segmenter: Segmenter) -> tuple[list[Example], list[str]]:
    """Returns the examples that can be read, and why others cannot."""
    examples, failures = [], []
    for path in paths:
        try:
            image, _ = decoded_for(segmenter.processor, path)
            examples.append(Example(path, thumbnail(segmenter.predictor.rgb(image))))
        except ValueError as error:
            failures.append(reason(error, path.name))
    return examples, failures
