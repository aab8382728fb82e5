"""Token labelling (Jiang et al., "All Tokens Matter", NeurIPS 2021, LV-ViT): a soft label for every token, and MixToken.

Labels are soft over K classes. A token's label is its image's, or comes from a label map that a stronger network left
for the image. MixToken gives a rectangle of tokens to another image of the batch. LV-ViT exchanges embedded patches; here
the pixels of the same patches are exchanged, which is the same where patches do not overlap, and needs nothing of the model.

Legend: B batch, C bands, H, W image axes, K classes, h, w axes of the tokens' grid, y, x axes of a label map.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from .image_augmentation import View

MIXING = 2  # marks the draws for a batch, after those for an image


def smoothed(label: int, num_classes: int, smoothing: float) -> Tensor:
    """(K,): the label's share, and `smoothing` spread over all classes."""
    shares = torch.full((num_classes,), smoothing / num_classes)
    shares[label] += 1.0 - smoothing
    return shares


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps in LV-ViT's format: for the image CLASS/NAME.jpg a tensor CLASS/NAME.pt of shape (2, top, y, x),
    the `top` highest logits in each place and the indices of their classes."""

    folder: Path
    num_classes: int
    grid: tuple[int, int]

    def __call__(self, name: str, view: View) -> Tensor:
        """The labels of what a sample shows of the image called `name`: (K, h, w)."""
        logits, ids = self.read(self.path(name))
        present, places = ids.unique(return_inverse=True)
        dense = torch.zeros(len(present), *ids.shape[1:]).scatter_(0, places, logits)
        cropped = align(dense, view, self.grid)
        labels = torch.zeros(self.num_classes, *self.grid)
        labels[present] = cropped
        return labels.softmax(0)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def read(self, path: Path) -> tuple[Tensor, Tensor]:
        """The logits and the class indices of a file, (top, y, x) each."""
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(
                f"there is no label map {path}. --token-labels needs one for every image; leave it out to label "
                "tokens with their image's class."
            ) from None
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"the label map {path} cannot be read: {error}") from error
        if not torch.is_tensor(stored) or stored.dim() != 4 or stored.shape[0] != 2:
            shape = tuple(stored.shape) if torch.is_tensor(stored) else type(stored).__name__
            raise ValueError(
                f"the label map {path} holds {shape}; a tensor (2, top, height, width) of logits and class indices "
                "is required, as LV-ViT's."
            )
        logits, ids = stored[0].float(), stored[1].long()
        if ids.min() < 0 or ids.max() >= self.num_classes:
            raise ValueError(
                f"the label map {path} names class {ids.max().item()}, but there are {self.num_classes} classes. "
                "Give label maps that were made for this data set."
            )
        return logits, ids


def align(maps: Tensor, view: View, grid: tuple[int, int]) -> Tensor:
    """(K, y, x) of the whole image -> (K, h, w) of what the view shows, by RoIAlign as in LV-ViT.

    A label map has no more than some twenty places a side, so its parts between places are interpolated.
    """
    height, width = maps.shape[1:]
    box = [view.left * width, view.top * height, view.right * width, view.bottom * height]
    cropped = roi_align(maps[None], [torch.tensor([box])], grid, aligned=True)[0]
    return cropped.flip(-1) if view.is_mirrored else cropped


@dataclass(frozen=True)
class MixToken:
    """Gives one rectangle of each image of a batch to its partner at the other end of the batch.

    The class label is mixed by the share of tokens; the labels of tokens move with them.
    """

    cell: int  # pixels of a side of what is exchanged: rectangles begin and end at its multiples
    seed: int

    def __call__(self, batch: dict[str, Any], key: tuple[int, int]) -> dict[str, Any]:
        """pixel_values (B, C, H, W), labels (B, K), maybe token_labels (B, K, h, w) -> the same, mixed; `key` is a sample's."""
        grid = tuple(-(-side // self.cell) for side in batch["pixel_values"].shape[-2:])
        rows, columns = draw_rectangle(grid, np.random.default_rng((self.seed, *key, MIXING)))
        share = (rows.stop - rows.start) * (columns.stop - columns.start) / (grid[0] * grid[1])
        mixed = {
            "pixel_values": exchanged(
                batch["pixel_values"], scaled(rows, self.cell), scaled(columns, self.cell)
            ),
            "labels": batch["labels"].lerp(batch["labels"].flip(0), share),
        }
        if "token_labels" in batch:
            mixed["token_labels"] = exchanged(batch["token_labels"], rows, columns)
        return batch | mixed


def draw_rectangle(grid: tuple[int, int], random: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a grid: a rectangle of the grid's shape with a uniform share of its area, cut off at the edges."""
    side_share = random.uniform() ** 0.5
    slices = []
    for length in grid:
        half = int(length * side_share) / 2
        centre = random.integers(length)
        start, stop = max(0, int(centre - half)), min(length, int(centre + half))
        slices.append(slice(start, max(start, stop)))
    return slices[0], slices[1]


def exchanged(maps: Tensor, rows: slice, columns: slice) -> Tensor:
    """(B, C, H, W) -> the same, with the rectangle from the batch in reverse order."""
    mixed = maps.clone()
    mixed[..., rows, columns] = maps.flip(0)[..., rows, columns]
    return mixed


def scaled(cells: slice, step: int) -> slice:
    return slice(cells.start * step, cells.stop * step)
