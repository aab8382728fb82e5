"""Masks for image files: which file becomes which mask, and how one is made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..modeling.explanations import global_attention_maps
from ..processing.image_reading import read_image, read_orientation
from ..processing.inference import Inference
from ..processing.orientation import swaps_sides, turn_back
from ..processing.overlays import heat_overlay, mask_overlay, save_png, with_cross
from ..processing.palettes import colorize, default_palette
from .prediction_maps import PICTURES, PictureMap, ProbabilityFile, mask_beside_maps

SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".webp",
    ".gif",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
}
PICTURE_FOLDERS = ("overlays", "attention", *PICTURES)  # below the output folder, beside the masks


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
            f"there are no images in {', '.join(images)}. Known endings: {', '.join(sorted(SUFFIXES))}."
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
    return file.suffix.lower() in SUFFIXES and file.is_file() and not hidden


def check_targets(jobs: list[Job]) -> None:
    """Two images never share a mask, and nothing that could be written replaces an input."""
    inputs = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for job in jobs:
        for picture in (job.target(kind) for kind in ("", *PICTURE_FOLDERS)):
            if picture.resolve() in inputs:
                raise ValueError(
                    f"a result for {job.source} would overwrite the image {picture}. Choose another --output."
                )
        target = job.target()
        if target in owners:
            raise ValueError(
                f"{owners[target]} and {job.source} would both become {target}. "
                "Predict them one after the other with different --output folders."
            )
        owners[target] = job.source


def parse_position(text: str) -> tuple[int, int]:
    """`"120,45"` -> (120, 45): pixels from the left and from the top."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(
            f"--explain {text} is not a position. Write X,Y in pixels from the left and the top: 120,45."
        )
    return int(parts[0]), int(parts[1])


class Predictor:
    """A model with its processor, how it is applied, and what to write for each image."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        inference: Inference,
        *,
        maps: Sequence[str] = (),
        overlay: bool = False,
        explain: tuple[int, int] | None = None,
    ) -> None:
        self.model, self.processor, self.inference = model, processor, inference
        self.maps, self.overlay, self.explain = maps, overlay, explain
        self.palette = processor.palette or default_palette(model.config.num_labels)

    def run(self, job: Job) -> None:
        orientation = read_orientation(job.source)
        mask = self.predict(job, orientation).cpu()
        save_png(mask_image(turn_back(mask, orientation), self.palette), job.target())
        if self.overlay:
            save_png(mask_overlay(self.read(job), mask.numpy(), self.palette), job.target("overlays"))
        if self.explain:
            save_png(self.attention_picture(job), job.target("attention"))

    def predict(self, job: Job, orientation: int) -> Tensor:
        """The upright mask (H, W); what else the probabilities tell is written on the way."""
        with Image.open(job.source) as image:
            width, height = image.size
        size = (width, height) if swaps_sides(orientation) else (height, width)
        what = self.model, self.inference.inputs(self.processor, job.source), size
        if not self.maps:
            return self.inference.mask(*what)
        maps = [self.new_map(name, job, (height, width), orientation) for name in self.maps]
        return mask_beside_maps(self.inference.probabilities(*what), size, maps)

    def new_map(
        self, name: str, job: Job, stored_size: tuple[int, int], orientation: int
    ) -> PictureMap | ProbabilityFile:
        target = job.target(name)
        if name in PICTURES:
            return PictureMap(target, PICTURES[name], stored_size, orientation)
        return ProbabilityFile(
            target.with_suffix(".npy"), self.model.config.num_labels, stored_size, orientation
        )

    def read(self, job: Job) -> Image.Image:
        return read_image(
            job.source, value_range=self.processor.value_range, pixel_limit=self.processor.pixel_limit
        )

    def attention_picture(self, job: Job) -> Image.Image:
        """Where the marked pixel of the upright image looks, when the model sees all of it: the paper's Fig. 1."""
        image = self.read(job)
        pixel_values = self.processor(job.source, return_tensors="pt")["pixel_values"].to(self.model.device)
        size = pixel_values.shape[:1:-1]  # width and height, as the processor resized the image
        position = tuple(at * new // old for at, new, old in zip(self.explain, size, image.size, strict=True))
        heat = global_attention_maps(self.model, pixel_values, position)[0].cpu().numpy()
        heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR))
        return with_cross(heat_overlay(image, heat), self.explain)


def mask_image(mask: Tensor, palette: list[list[int]]) -> Image.Image:
    """(H, W) class ids -> a palette picture; a 16-bit one without colours when there are more than 256 classes."""
    if len(palette) > 256:
        return Image.fromarray(mask.numpy().astype(np.uint16))
    return colorize(mask, palette)
