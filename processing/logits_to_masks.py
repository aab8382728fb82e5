"""Post-processing from logits at the decoder's stride to class ids at any size.

Memory does not grow with the number of classes.

Legend: B batch, K classes, h, w cells of the logits, H, W pixels.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import SemanticSegmenterOutput

try:
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
except ImportError:  # older versions of transformers have no such output
    from transformers.image_processing_utils import BatchFeature as SemanticSegmentationPostProcessorOutput

from .image_opening import Source, read_orientation
from .orientation import TURNS, UPRIGHT, swaps_sides, turn_back
from .palettes import colorize
from .tiling import RowReader

CHUNK_VALUES = 1 << 24  # upsampled logits held at once: 64 MiB
SMALLEST_SCORE = 1e-30
LINEAR = {1: "linear", 2: "bilinear"}


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) -> (B, H, W) int64: the class with the highest logit after resizing to `size`.

    Interpolates bilinearly a few classes at a time and keeps a running maximum, so no (B, K, H, W) tensor
    exists.
    """
    step = max(1, CHUNK_VALUES // max(1, len(logits) * size[0] * size[1]))
    best, winner = None, None
    for first in range(0, logits.shape[1], step):
        chunk = logits[:, first : first + step].float()
        chunk = F.interpolate(chunk, size=size, mode="bilinear", align_corners=False)
        values, classes = chunk.max(dim=1)
        if best is None:
            best, winner = values, classes
        else:
            better = values > best  # of equal logits the first class stays
            best, winner = torch.where(better, values, best), torch.where(better, classes + first, winner)
    return winner


def argmax_of_bands(
    bands: Iterable[Tensor], size: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Class scores as bands of rows (K, R, W), top to bottom -> (H, W) int32 class ids, (H, W) = `size`."""
    mask, row = torch.empty(tuple(size), dtype=torch.int32, device=device), 0
    for scores in bands:
        mask[row : row + scores.shape[1]] = scores.max(0).indices  # several times as fast as argmax
        row += scores.shape[1]
    return mask


def upsampled_rows(
    rows: RowReader, cells: int, size: Sequence[int], start: int, stop: int, nearest: int | None = None
) -> Tensor:
    """(K, cells, g...) -> (K, stop - start, G...): rows start..stop-1 after linear resizing of all axes to `size`.

    Args:
        rows: The map, on two or three axes.
        cells: Its cells along the first axis.
        size: Cells after resizing along each axis.
        start: The first row.
        stop: The row after the last.
        nearest: An axis along which the nearest cell is taken instead. Default: None.
    """
    at = cells_at(start, stop, cells, size[0])
    if nearest == 0:
        at = (at + 0.5).floor()
    above = at.long().clamp(max=cells - 1)
    below = (above + 1).clamp(max=cells - 1)
    first = int(above[0])
    band = rows.read(first, int(below[-1]) + 1)
    share = (at - above).to(band).reshape(-1, *[1] * len(size[1:]))
    above, below = ((index - first).to(band.device) for index in (above, below))
    band = torch.lerp(band.index_select(1, above), band.index_select(1, below), share)
    if nearest:
        at = cells_at(0, size[nearest], band.shape[nearest + 1], size[nearest])
        band = band.index_select(
            nearest + 1, (at + 0.5).long().clamp(max=band.shape[nearest + 1] - 1).to(band.device)
        )
    rest = tuple(size[1:])  # rows first: they have few cells
    return F.interpolate(band, size=rest, mode=LINEAR[len(rest)], align_corners=False)


def cells_at(start: int, stop: int, cells: int, size: int) -> Tensor:
    """(stop - start,) float64: where pixels start..stop-1 of `size` lie among cells, in units from the first center."""
    return ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * cells / size - 0.5).clamp(min=0)


def mean_probabilities(views: Iterable[Tensor], are_scores: bool = False) -> Tensor:
    """Logits (K, rows, W) of each view -> the mean of their class probabilities.

    Scores, which are in proportion to probabilities, are averaged as they are; where all are 0, classes are equal.
    """
    total, count = None, 0
    for logits in views:
        values = logits if are_scores else logits.softmax(0)
        total = values if total is None else total.add_(values)
        count += 1
    if not are_scores:
        return total / count
    total = total.clamp(min=SMALLEST_SCORE)
    return total / total.sum(0)


def covered_cells(pixels: int, padded: int, cells: int) -> int:
    """Returns how many cells an image of `pixels` has along an axis, given that `padded` pixels have `cells`.

    A model has ceil(pixels / stride) cells. The stride is taken as the smallest power of two that is
    consistent with `cells`.
    """
    strides = (1 << k for k in range(padded.bit_length() + 1))
    stride = next((stride for stride in strides if -(-padded // stride) == cells), None)
    return -(-pixels * cells // padded) if stride is None else -(-pixels // stride)


def crop_padding(logits: Tensor, pixel_mask: Tensor) -> Tensor:
    """(K, h, w) of a padded image -> the cells of its content, where `pixel_mask` (H, W) is 1."""
    content = int(pixel_mask[:, 0].sum()), int(pixel_mask[0].sum())
    rows, columns = (
        covered_cells(*axis) for axis in zip(content, pixel_mask.shape, logits.shape[-2:], strict=True)
    )
    return logits[:, :rows, :columns]


def upright_size(size: Sequence[int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored in a file -> that of the upright image."""
    height, width = (int(side) for side in size)
    return (width, height) if swaps_sides(orientation) else (height, width)


def logits_of_pixels(outputs: SemanticSegmenterOutput) -> Tensor:
    """The logits (B, K, h, w). Raises ValueError if a model classifies masks, as EoMT, and has others."""
    if getattr(outputs, "logits", None) is None:
        raise ValueError(
            "these outputs have no logits of pixels: the model classifies masks, as EoMT does. Segment with contextseg's Inference, "
            "or pass transformers' own image processor of such a model."
        )
    return outputs.logits


def mask_of(logits: Tensor, size: Sequence[int], orientation: int) -> Tensor:
    """(K, h, w) of an upright image -> (H, W) = `size`, the class ids of its pixels as stored in the file."""
    return turn_back(upsampled_argmax(logits[None], upright_size(size, orientation))[0], orientation)


def scores_of(logits: Tensor, size: Sequence[int], orientation: int) -> Tensor:
    """(K, h, w) of an upright image -> (K, H, W), the logits resized to the pixels as stored in the file."""
    upright = upright_size(size, orientation)
    resized = F.interpolate(logits[None].float(), size=upright, mode="bilinear", align_corners=False)[0]
    return turn_back(resized.movedim(0, -1), orientation).movedim(-1, 0)


def checked_sizes(target_sizes: Sequence[Any] | Tensor, orientations: Sequence[int]) -> list[tuple[int, int]]:
    """The sizes as pairs of ints. Raises ValueError for one that is not (height, width), or a wrong orientation."""
    for code in orientations:
        if code not in TURNS:
            raise ValueError(f"orientations has {code!r}; an EXIF orientation is a whole number from 1 to 8.")
    sizes = []
    for size in target_sizes:
        try:
            height, width = (int(side) for side in size)
        except (TypeError, ValueError):
            height = width = 0
        if min(height, width) < 1:
            raise ValueError(
                f"target_sizes has {size!r:.80} for an image, but must have (height, width), in pixels from 1. Pass for "
                "example [(375, 500)] for one image."
            )
        sizes.append((height, width))
    return sizes


class SemanticPostProcessing:
    """Post-processing methods of an image processor; needs an attribute `palette`."""

    def read_orientation(self, image: Source) -> int:
        """Returns the EXIF orientation (1..8) of an image; 1 (upright) if it has none that can be read."""
        return read_orientation(image, self.pixel_limit)

    def post_process_semantic_segmentation(
        self,
        outputs: SemanticSegmenterOutput,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        pixel_mask: Tensor | None = None,
        orientations: Sequence[int] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Turns the outputs of a segmenter into masks.

        Args:
            outputs: Outputs of the model with `logits` (B, K, h, w).
            target_sizes: (height, width) of each mask in pixels. Default: the size of the logits.
            pixel_mask: (B, H, W) that `preprocess` returned for a padded batch, to crop the padding.
            orientations: EXIF orientation of each image, from `read_orientation`. Masks are then rotated back
                to the pixels as stored in the file, and `target_sizes` are the stored sizes. By default masks
                are upright.
            return_segmentation_scores: Whether to return the logits of all classes too, resized to the mask.
                Their memory grows with the number of classes. Default: False.

        Returns:
            B masks (H, W) of int64 class ids. With scores, B outputs with the attributes `segmentation`, the
            mask, and `segmentation_scores` (K, H, W).

        Raises:
            ValueError: If an argument does not have one entry per image, an entry is invalid, or there are no logits.
        """
        logits = list(logits_of_pixels(outputs))
        for_each = {"target_sizes": target_sizes, "pixel_mask": pixel_mask, "orientations": orientations}
        for name, values in for_each.items():
            if values is not None and len(values) != len(logits):
                raise ValueError(
                    f"{name} has {len(values)} entries for {len(logits)} images. Give one per image."
                )
        if pixel_mask is not None:
            logits = [crop_padding(*pair) for pair in zip(logits, pixel_mask, strict=True)]
        if target_sizes is None:
            views = [(image_logits, image_logits.shape[1:], UPRIGHT) for image_logits in logits]
        else:
            codes = [UPRIGHT] * len(logits) if orientations is None else orientations
            views = list(zip(logits, checked_sizes(target_sizes, codes), codes, strict=True))
        masks = [mask_of(*view) for view in views]
        if not return_segmentation_scores:
            return masks
        return [
            SemanticSegmentationPostProcessorOutput(
                data={"segmentation": mask, "segmentation_scores": scores_of(*view)}
            )
            for mask, view in zip(masks, views, strict=True)
        ]

    def colorize(self, mask: np.ndarray | Tensor) -> Image.Image:
        """Colors a mask with `palette`, or with a default one.

        Args:
            mask: Class ids (H, W) from 0 to 255.

        Returns:
            A palette image whose pixel values are the class ids, so that the saved file is a mask as well.

        Raises:
            ValueError: If an id is outside 0..255.
        """
        return colorize(mask, self.palette)
