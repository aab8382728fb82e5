"""Segments raster files for `contextseg-predict`: masks and maps with their place on Earth, and pictures of them."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from .geotiff import read_reduced
from .overlays import mask_overlay, save_png
from .polygons import write_polygons
from .prediction import Predictor
from .prediction_files import FilePredictor, Job
from .prediction_maps import IMAGE_MAPS
from .raster_layers import nodata_of
from .raster_segmentation import MEMORY, WHOLE_PIXELS, RasterSegmentation, RasterTargets
from .rasters import Raster, read_window, window_values

OVERLAY_SIDE = 2048  # pixels of the longer side of an overlay at most


class RasterPredictor(FilePredictor):
    """Segments raster files, and leaves other images to a `Predictor`.

    Args:
        plain: Segments other images; its model, processor and options are used for rasters, too.
        polygons_crs: "wgs84" or "scene" to write polygons. Default: none are written.
        memory: Bytes that may be held besides the model. Default: 2 GiB.
        window: Side of the windows in which large rasters are segmented if `inference` has none. Default: the
            model's `crop_size`, or 512.
        tell: Called with a sentence on windows that were chosen. Default: nothing is told.
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

    def run(self, job: Job) -> None:
        """Segments one image or raster and writes its mask and the other requested results.

        Raises:
            ImageReadError: It cannot be read.
            ValueError: As of `prepared`, or the disk has too little space.
            OSError: A file cannot be written.
        """
        if not job.is_raster:
            self.plain.run(job)
            if self.polygons_crs:
                write_polygons(job.polygons(), job.target(), None, self.plain.names)
            return
        work = self.prepared(job)
        work.begin()
        work.segment(work.parts.to_do())
        work.finish()
        self.draw(job, work.raster)

    def prepared(self, job: Job) -> RasterSegmentation:
        """Opens the raster of a job and returns the work on it.

        Raises:
            ImageReadError: The raster cannot be opened.
            ValueError: A result would replace the raster, or an explanation of it is not possible.
        """
        targets = RasterTargets(
            mask=job.target(),
            **{name: job.target(name) for name in self.plain.maps if name in IMAGE_MAPS},
            probabilities=job.array() if "probabilities" in self.plain.maps else None,
            polygons=job.polygons() if self.polygons_crs else None,
            polygons_crs=self.polygons_crs or "wgs84",
        )
        work = RasterSegmentation(
            self.model, self.processor, job.source, targets, self.plain.inference, self.memory, self.window
        )
        _, height, width = work.raster.shape
        if self.plain.explanations and height * width > WHOLE_PIXELS:
            raise ValueError(
                f"{job.source} has {height}x{width} pixels, and attention and Grad-CAM are drawn of rasters up to "
                f"{WHOLE_PIXELS} pixels. Cut out the part of interest, such as with gdal_translate -srcwin."
            )
        if work.inference != self.plain.inference:
            self.tell(f"{job.source}, {height}x{width} pixels: {work.inference} (--window chooses others)")
        return work

    def draw(self, job: Job, raster: Raster) -> None:
        """Writes the pictures of a raster that is segmented."""
        if self.plain.overlay:
            scale = min(1.0, OVERLAY_SIDE / max(raster.shape[1:]))
            image, mask, nodata = self.picture(job, raster, scale)
            look = {"ignore_index": nodata, "names": self.plain.names}
            save_png(mask_overlay(image, mask, self.plain.palette, **look), job.picture("overlays"))
        if self.plain.explanations:
            image, mask, _ = self.picture(job, raster, 1.0)
            values = window_values(self.processor, *read_window(raster, 0, 0, *raster.shape[1:]))[None]
            values = values.to(self.model.device, self.model.dtype)
            for kind, draw in self.plain.explanations.items():
                save_png(draw(image, values, torch.from_numpy(mask.astype(np.int64))), job.picture(kind))

    def picture(self, job: Job, raster: Raster, scale: float) -> tuple[Image.Image, np.ndarray, int]:
        """Returns the raster as RGB, its mask at the same scale, and the mask's value of pixels without data."""
        pixels, valid = read_window(raster, 0, 0, *raster.shape[1:], scale)
        pixels = np.where(valid, pixels, np.zeros((), pixels.dtype))
        image = self.plain.rgb(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
        mask = read_reduced(job.target(), image.size[::-1])
        return image, mask, nodata_of(self.model.config.num_labels)
