"""Segments rasters of any size: bands of rows go to part files, from which the results are put together at the end."""

import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..image_opening import PIXEL_LIMIT, Source
from ..inference import Inference
from ..mask_models import as_segmenter, gives_scores, image_part
from ..palettes import class_colors
from ..processor_inputs import channels_of
from ..progress import progress
from .gdal import INSTALL_GEO, load_rasterio
from .geotiff import write_geotiff
from .inference import MEMORY
from .layers import Validity, layer_rows, layers_of, map_content, mask_content
from .part_files import PartFiles
from .polygons import check_coordinates, write_polygons
from .probability_files import write_probabilities
from .raster import Raster, open_raster
from .work_records import files_of, model_record, record_of

OWN_MEMORY = 128 << 20  # bytes that turning scores into results takes
WHOLE_PIXELS = 2048 * 2048  # of the largest raster that is segmented as a whole
WINDOW = 512  # pixels, where neither model nor training tells another size
PIECE_VALUES = 1 << 21  # class probabilities that become results at once
Target = str | os.PathLike


@dataclass(frozen=True)
class RasterTargets:
    """The files that are written of one raster; None for those that are not.

    Args:
        mask: GeoTIFF of class ids.
        confidence: GeoTIFF of the probability of the predicted class.
        entropy: GeoTIFF of the entropy of the class probabilities.
        probabilities: `.npy` of all class probabilities.
        polygons: GeoJSON of the areas of all classes.
        polygons_crs: Coordinates of the polygons: "wgs84", longitude and latitude, or "scene". Default: "wgs84".
    """

    mask: Path
    confidence: Path | None = None
    entropy: Path | None = None
    probabilities: Path | None = None
    polygons: Path | None = None
    polygons_crs: str = "wgs84"

    @property
    def maps(self) -> list[str]:
        """Names of the maps that are written, besides the mask."""
        return [name for name in ("confidence", "entropy", "probabilities") if getattr(self, name)]

    def paths(self) -> list[Path]:
        """All files that are written."""
        return [value for field in fields(self) if isinstance(value := getattr(self, field.name), Path)]


def segment_raster(  # noqa: PLR0913 - one argument for each result
    model: nn.Module,
    processor: Any,
    source: Source | Raster,
    target: Target,
    *,
    inference: Inference | None = None,
    memory: int = MEMORY,
    confidence: Target | None = None,
    entropy: Target | None = None,
    polygons: Target | None = None,
) -> Path:
    """Segments a raster of any size in bounded memory, and writes the mask as a GeoTIFF where the raster lies.

    The mask is tiled, compressed without loss, and has the raster's CRS and transform (or control points), the
    colors and names of the classes, and overviews. Pixels without data get its nodata value, 255, or 65535 if there
    are more than 255 classes. Finished rows are kept in a folder `NAME.parts` beside the target: the same call goes
    on after the last of them if the process was killed. Files get their names when they are complete.

    Args:
        model: A segmenter in evaluation mode.
        processor: Its image processor.
        source: Path of a raster file (GeoTIFF, COG, VRT, JPEG 2000, ...) or image, an array, a memory map, a zarr-like
            array, or any object with `shape` and `read(rows, columns, scale)`.
        target: The GeoTIFF to write; an existing one is replaced.
        inference: How the model is applied. Default: as a whole up to 4 megapixels; above, in windows of the model's
            `crop_size`, or of 512 pixels.
        memory: Bytes that may be held besides the model. The result does not depend on it. Default: 2 GiB.
        confidence: A GeoTIFF of the probability of the predicted class: uint16, 65535 is 1. Default: none.
        entropy: A GeoTIFF of the entropy divided by log K: uint16, 65535 is 1. Default: none.
        polygons: A GeoJSON file of the areas of all classes, in longitude and latitude. Default: none.

    Returns:
        The path of the mask.

    Raises:
        ImageReadError: If the raster cannot be read.
        ValueError: If a target is the source or one of its files, or the disk has too little space.
        OSError: If a file cannot be written.
        ImportError: If rasterio is not installed.
    """
    maps = {"confidence": confidence, "entropy": entropy, "polygons": polygons}
    paths = {name: Path(path) for name, path in maps.items() if path is not None}
    work = RasterSegmentation(
        model, processor, source, RasterTargets(Path(target), **paths), inference or Inference(), memory
    )
    try:
        work.begin()
        work.segment_rest()
        work.finish()
    finally:
        work.parts.release()
    return Path(target)


class RasterSegmentation:
    """The work on one raster in steps, which processes can divide.

    One process calls `begin`; then each calls `segment` for its share of `parts.to_do()`; then one calls `finish`.

    Args:
        model: A segmenter in evaluation mode.
        processor: Its image processor.
        source: As of `segment_raster`.
        targets: What to write.
        inference: How the model is applied.
        memory: Bytes that may be held besides the model.
        window: Side of the windows where `inference` has none and the raster is large. Default: the model's
            `crop_size`, or 512.

    Raises:
        ImageReadError: If the raster cannot be opened.
        ValueError: If a target is the source or one of its files.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        source: Source | Raster,
        targets: RasterTargets,
        inference: Inference,
        memory: int = MEMORY,
        window: int | tuple[int, int] | None = None,
    ) -> None:
        if load_rasterio() is None:
            raise ImportError(f"writing GeoTIFFs needs rasterio. {INSTALL_GEO}")
        model, processor = as_segmenter(model, processor), image_part(processor)
        limit = getattr(processor, "pixel_limit", PIXEL_LIMIT)
        self.raster = open_raster(source, channels_of(processor), limit)
        self.files = files_of(source, self.raster)
        check_targets(targets, self.files)
        self.reference = getattr(self.raster, "georeference", None)
        if targets.polygons is not None:
            check_coordinates(self.reference, targets.polygons_crs)
        self.model, self.processor, self.targets = model, processor, targets
        self.inference = with_windows(inference, model, self.raster.shape[1:], window)
        self.memory = max(memory // 2, memory - OWN_MEMORY)

    @cached_property
    def parts(self) -> PartFiles:
        """The part files; the bands are the rows of windows, for which the model may be asked for its stride."""
        layers = layers_of(self.targets.maps, self.model.config.num_labels, self.raster.shape[2])
        starts = self.inference.raster_rows(self.model, self.raster)
        return PartFiles(work_folder(self.targets.mask), layers, self.raster.shape[1], starts)

    def begin(self, model: str | None = None) -> None:
        """Prepares the part files; those of the same work are kept, and all others dropped.

        Args:
            model: The model's `model_record`, if it is known already. Default: it is computed, from all weights.
        """
        what = self.processor, self.inference, self.raster, self.files
        self.parts.begin(record_of(model or model_record(self.model), *what))

    def segment_rest(self) -> None:
        """Segments all bands that are not finished, in one process."""
        try:
            self.segment(self.parts.to_do())
        except BaseException:
            self.parts.remove_if_empty()
            raise

    @torch.no_grad()
    def segment(self, bands: Sequence[int]) -> None:
        """Segments bands of rows of the raster and writes their part files. Neighboring bands share work."""
        limits, validity = self.parts.bands, Validity(self.raster)
        name = getattr(self.raster, "name", "")
        total = sum(limits[band][1] - limits[band][0] for band in bands)
        with progress(total=total, unit="row", desc=name.strip("'"), disable=len(limits) == 1) as bar:
            for run in runs(bands):
                rows = limits[run[0]][0], limits[run[-1]][1]
                scores = self.inference.raster_scores(
                    self.model, self.processor, self.raster, rows, self.memory, probabilities=False
                )
                pieces = pieces_of(scores, limits)
                for band in run:
                    self.write_band(band, pieces, validity)
                    bar.update(limits[band][1] - limits[band][0])

    def write_band(self, band: int, pieces: Iterator[tuple[int, Tensor]], validity: Validity) -> None:
        """Writes the next pieces of class scores, up to the last row of a band, to its part files."""
        row, stop = self.parts.bands[band]
        kind = {
            "are_logits": not self.inference.has_several_views,
            "are_scores": gives_scores(self.model),
        }
        with self.parts.writing(band) as writer:
            while row < stop:
                row, scores = next(pieces)
                end = row + scores.shape[1]
                writer.add(layer_rows(list(self.parts.layers), scores, validity.rows(row, end), **kind))
                row = end

    def finish(self) -> None:
        """Puts the results together, the mask last, and removes the part files."""
        size, reference = self.raster.shape[1:], self.reference
        for name in self.targets.maps:
            target = getattr(self.targets, name)
            if name == "probabilities":
                write_probabilities(target, self.reader(name), (self.model.config.num_labels, *size))
            else:
                write_geotiff(target, self.reader(name), size, map_content(name), reference)
        names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        colors = class_colors(getattr(self.processor, "palette", None), len(names))
        complete = self.parts.folder / "mask"
        write_geotiff(complete, self.reader("mask"), size, mask_content(names, colors), reference)
        if self.targets.polygons is not None:
            write_polygons(self.targets.polygons, complete, reference, names, self.targets.polygons_crs)
        complete.replace(self.targets.mask)
        self.parts.remove()

    def reader(self, name: str) -> Any:
        """Returns a function of first row and last + 1 that reads rows of a layer from the part files."""
        return lambda start, stop: self.parts.read(name, start, stop)


def with_windows(
    inference: Inference, model: nn.Module, size: Sequence[int], window: Any = None
) -> Inference:
    """Returns settings with windows for a raster of this size (H, W), unless they have some or it is small."""
    crop_size = getattr(model, "crop_size", None) or getattr(model.config, "crop_size", None)
    if inference.window is None and getattr(model.config, "context_ratio", None) is not None:
        return replace(
            inference, window=crop_size, overlap=0.0
        )  # what the model itself does with a whole image
    if inference.window is not None or size[0] * size[1] <= WHOLE_PIXELS:
        return inference
    return replace(inference, window=window or crop_size or WINDOW)


def work_folder(target: Path) -> Path:
    """Returns the folder of the part files of a target. Its name has no ending of an image."""
    return target.with_name(f"{target.stem}.parts")


def check_targets(targets: RasterTargets, files: Sequence[str]) -> None:
    """Raises ValueError if a target is a file of the source, under any name, a folder, or another target."""
    paths = targets.paths()
    for index, target in enumerate(paths):
        for file in files:
            if is_same_file(target, file):
                raise ValueError(
                    f"'{target}' is the source, or a file of it ('{file}'). Choose another target."
                )
        if target.is_dir():
            raise ValueError(f"'{target}' is a folder. Give the path of a file.")
        if any(is_same_file(target, other) for other in paths[:index]):
            raise ValueError(f"'{target}' is the target of two results. Give each its own.")


def is_same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two paths lead to the same file, which need not exist, also through links."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Yields the runs of consecutive numbers: [0, 1, 4] -> [0, 1], [4]."""
    numbers = sorted(numbers)
    ends = [index + 1 for index, (a, b) in enumerate(pairwise(numbers)) if b != a + 1]
    for start, stop in pairwise([0, *ends, len(numbers)]):
        if start < stop:
            yield numbers[start:stop]


def pieces_of(
    scores: Iterator[tuple[int, Tensor]], bands: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Tensor]]:
    """Cuts strips of rows (K, R, W) into small pieces that lie in one band: (first row, piece)."""
    starts = [start for start, _ in bands]
    for row, strip in scores:
        most = max(1, PIECE_VALUES // (strip.shape[0] * strip.shape[2]))
        done = 0
        while done < strip.shape[1]:
            stop = bands[bisect(starts, row + done) - 1][1]
            count = min(most, stop - row - done, strip.shape[1] - done)
            yield row + done, strip[:, done : done + count]
            done += count


__all__ = ["RasterSegmentation", "RasterTargets", "segment_raster"]
