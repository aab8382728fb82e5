"""Segments raster files for `contextseg-predict`: masks and maps with their place on Earth, and pictures of them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..overlays import mask_overlay, save_png
from ..prediction import Predictor
from ..prediction_files import FilePredictor, Job
from ..prediction_maps import IMAGE_MAPS
from .geotiff import read_reduced
from .inference import MEMORY
from .layers import nodata_of
from .polygons import write_polygons
from .raster import Raster, read_window, window_values
from .segmentation import WHOLE_PIXELS, RasterSegmentation, RasterTargets
from .work_records import model_record

OVERLAY_SIDE = 2048  # pixels of the longer side of an overlay at most


class RasterPredictor(FilePredictor):
    """Segments raster files, and leaves other images to a `Predictor`.

    Args:
        plain: Segments other images; its model, processor and options are used for rasters, too.
        polygons_crs: "wgs84" or "scene" to write polygons. Default: none are written.
        memory: Bytes that may be held besides the model. Default: 2 GiB.
        window: Side of the windows in which large rasters are segmented if `inference` has none. Default: the
            model's `crop_size`, or 512.
        tell: Called with a sentence about the windows that were chosen. Default: nothing is said.
    """

    done = "segmented"

    def __init__(
        self,
        plain: Predictor,
        *,
        polygons_crs: str | None = None,
        memory: int = MEMORY,
        window: int | tuple[int, int] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.plain, self.model, self.processor = plain, plain.model, plain.processor
        self.polygons_crs, self.memory, self.window, self.tell = polygons_crs, memory, window, tell
        self.told: set[Job] = set()

    def load(self, job: Job) -> Any:
        """Opens a raster, or reads another image. Raises ImageReadError, and ValueError as `prepared` does."""
        return self.prepared(job) if job.is_raster else self.plain.load(job)

    def predict(self, job: Job, loaded: Any) -> Any:
        """Segments a raster into part files, or another image.

        Raises:
            ImageReadError: If the raster cannot be read.
            ValueError: If the disk has too little space, or an explanation is not possible.
            OSError: If a part file cannot be written.
        """
        if not job.is_raster:
            return self.plain.predict(job, loaded)
        loaded.begin(self.model_record)
        loaded.segment_rest()
        return loaded, self.explained(loaded)

    def write(self, job: Job, predicted: Any) -> None:
        """Writes the mask and the other requested results. Raises OSError if a file cannot be written."""
        if job.is_raster:
            work, explained = predicted
            work.finish()
            for kind, picture in explained.items():
                save_png(picture, job.picture(kind))
            if self.plain.overlay:
                save_png(self.overlay(job, work.raster), job.picture("overlays"))
            return
        self.plain.write(job, predicted)
        if self.polygons_crs:
            write_polygons(job.polygons(), job.target(), None, self.plain.names)

    def targets(self, job: Job) -> list[Path]:
        """The mask and the other requested results."""
        polygons = [job.polygons()] if self.polygons_crs else []
        if not job.is_raster:
            return self.plain.targets(job) + polygons
        pictures = [*["overlays"] * self.plain.overlay, *self.plain.explanations]
        return self.raster_targets(job).paths() + [job.picture(kind) for kind in pictures]

    @cached_property
    def model_record(self) -> str:
        """Tells the model apart from others; computed once, since it reads all weights."""
        return model_record(self.model)

    def parts_of(self, job: Job) -> "PartedRaster | None":
        """Returns a raster in rows of windows, None for another image. Raises what `load` raises."""
        return PartedRaster(self, job) if job.is_raster else None

    def raster_targets(self, job: Job) -> RasterTargets:
        """What is written of a raster, besides pictures."""
        return RasterTargets(
            mask=job.target(),
            **{name: job.target(name) for name in self.plain.maps if name in IMAGE_MAPS},
            probabilities=job.array() if "probabilities" in self.plain.maps else None,
            polygons=job.polygons() if self.polygons_crs else None,
            polygons_crs=self.polygons_crs or "wgs84",
        )

    def prepared(self, job: Job) -> RasterSegmentation:
        """Opens the raster of a job and returns the work on it.

        Raises:
            ImageReadError: The raster cannot be opened.
            ValueError: A result would replace the raster, or an explanation of it is not possible.
        """
        work = RasterSegmentation(
            self.model,
            self.processor,
            job.source,
            self.raster_targets(job),
            self.plain.inference,
            self.memory,
            self.window,
        )
        _, height, width = work.raster.shape
        if self.plain.explanations and height * width > WHOLE_PIXELS:
            raise ValueError(
                f"{job.source} has {height}x{width} pixels, and attention and Grad-CAM are drawn of rasters up to "
                f"{WHOLE_PIXELS} pixels. Cut out the part of interest, such as with gdal_translate -srcwin."
            )
        if work.inference != self.plain.inference and job not in self.told:
            self.told.add(job)
            self.tell(f"{job.source}, {height}x{width} pixels: {work.inference} (--window chooses others)")
        return work

    def explained(self, work: RasterSegmentation) -> dict[str, Image.Image]:
        """Returns the explanations of a raster whose part files are finished, by subfolder."""
        if not self.plain.explanations:
            return {}
        pixels, valid = read_window(work.raster, 0, 0, *work.raster.shape[1:])
        values = window_values(self.processor, pixels, valid)[None].to(self.model.device, self.model.dtype)
        mask = torch.from_numpy(work.parts.read("mask", 0, work.raster.shape[1]).astype(np.int64))
        image = self.rgb(pixels, valid)
        return {kind: draw(image, values, mask) for kind, draw in self.plain.explanations.items()}

    def overlay(self, job: Job, raster: Raster) -> Image.Image:
        """Returns the raster overlaid with class colors, reduced if it is large."""
        scale = min(1.0, OVERLAY_SIDE / max(raster.shape[1:]))
        image = self.rgb(*read_window(raster, 0, 0, *raster.shape[1:], scale))
        mask = read_reduced(job.target(), image.size[::-1])
        look = {"ignore_index": nodata_of(self.model.config.num_labels), "names": self.plain.names}
        return mask_overlay(image, mask, self.plain.palette, **look)

    def rgb(self, pixels: np.ndarray, valid: np.ndarray) -> Image.Image:
        """Pixels (C, H, W) and where there are data (H, W) -> an RGB image, black where there are none."""
        pixels = np.where(valid, pixels, np.zeros((), pixels.dtype))
        return self.plain.rgb(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


class PartedRaster:
    """A raster in parts, which are its rows of windows; see `prediction_files.PartedImage`."""

    def __init__(self, predictor: RasterPredictor, job: Job) -> None:
        self.predictor, self.job, self.work = predictor, job, predictor.prepared(job)
        self.num_parts = len(self.work.parts.bands)

    def begin(self) -> list[int]:
        """Prepares the part files; returns the rows of windows that are to do."""
        self.work.begin(self.predictor.model_record)
        return self.work.parts.to_do()

    def predict(self, parts: Sequence[int]) -> None:
        """Segments rows of windows into part files."""
        self.work.segment(parts)

    def write(self) -> None:
        """Puts the results together."""
        self.predictor.write(self.job, (self.work, self.predictor.explained(self.work)))
