"""Token labeling and MixToken (LV-ViT: Jiang et al., "All Tokens Matter", NeurIPS 2021).

Every token has a soft label over K classes: that of its image, or one from a label map that a stronger model
predicted for the image. MixToken swaps a rectangle of tokens between two images of the batch. LV-ViT swaps
embedded patches; here the pixels of the patches are swapped, which is equal if patches do not overlap and does
not involve the model.

Legend: B batch, C channels, H, W image axes, K classes, h, w token grid axes, y, x label map axes.
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

MIXING = 2  # key of the draws for a batch, after the two for an image


def smoothed(label: int, num_classes: int, smoothing: float) -> Tensor:
    """Class index -> (K,) label with `smoothing` spread evenly over all classes."""
    shares = torch.full((num_classes,), smoothing / num_classes)
    shares[label] += 1.0 - smoothing
    return shares


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps in LV-ViT's format.

    The label map of CLASS/NAME.jpg is a tensor of shape (2, top, y, x) in CLASS/NAME.pt: the `top` highest
    logits at each position, and their class indices.

    Args:
        folder: Folder of the label maps.
        num_classes: Number of classes K.
        grid: Height and width (h, w) of the token grid.
    """

    folder: Path
    num_classes: int
    grid: tuple[int, int]

    def __call__(self, name: str, view: View) -> Tensor:
        """Image name and view -> (K, h, w) soft labels of the part of the image in view.

        Raises ValueError if there is no label map for the image, or it is not valid.
        """
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
        """The logits and the class indices of a file, each (top, y, x)."""
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(
                f"there is no label map {path}. --token-labels needs one for every image; omit it to label "
                "tokens with the class of their image."
            ) from None
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"the label map {path} cannot be read: {error}") from error
        if not torch.is_tensor(stored) or stored.dim() != 4 or stored.shape[0] != 2:
            shape = tuple(stored.shape) if torch.is_tensor(stored) else type(stored).__name__
            raise ValueError(
                f"the label map {path} contains {shape}. Give a tensor (2, top, height, width) of logits "
                "and class indices, as in LV-ViT."
            )
        logits, ids = stored[0].float(), stored[1].long()
        if ids.min() < 0 or ids.max() >= self.num_classes:
            raise ValueError(
                f"the label map {path} contains class {ids.max().item()}, but there are {self.num_classes} "
                "classes. Give label maps that were made for this dataset."
            )
        return logits, ids


def align(maps: Tensor, view: View, grid: tuple[int, int]) -> Tensor:
    """(K, y, x) of the whole image -> (K, h, w) of the part in view, by RoIAlign as in LV-ViT.

    Label maps have only about twenty positions per side, so values between positions are interpolated.
    """
    height, width = maps.shape[1:]
    box = [view.left * width, view.top * height, view.right * width, view.bottom * height]
    cropped = roi_align(maps[None], [torch.tensor([box])], grid, aligned=True)[0]
    return cropped.flip(-1) if view.is_mirrored else cropped


@dataclass(frozen=True)
class MixToken:
    """Swaps one rectangle between each image and its partner at the same position from the end of the batch.

    Class labels are mixed in proportion to the swapped tokens; token labels move with their tokens.

    Args:
        cell: Side in pixels of the cells that are swapped; rectangles start and end at multiples of it.
        seed: Seed of all random draws.
    """

    cell: int
    seed: int

    def __call__(self, batch: dict[str, Any], key: tuple[int, int]) -> dict[str, Any]:
        """pixel_values (B, C, H, W), labels (B, K), optional token_labels (B, K, h, w) -> the same, mixed.

        `key` is the (epoch, index) on which the draw depends.
        """
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
    """Draws the rows and columns of a rectangle on the grid.

    It has the aspect ratio of the grid and a uniformly drawn share of its area, and is cut off at the edges.
    """
    side_share = random.uniform() ** 0.5
    slices = []
    for length in grid:
        half = int(length * side_share) / 2
        center = random.integers(length)
        start, stop = max(0, int(center - half)), min(length, int(center + half))
        slices.append(slice(start, max(start, stop)))
    return slices[0], slices[1]


def exchanged(maps: Tensor, rows: slice, columns: slice) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W), with the rectangle taken from the batch in reverse order."""
    mixed = maps.clone()
    mixed[..., rows, columns] = maps.flip(0)[..., rows, columns]
    return mixed


def scaled(cells: slice, step: int) -> slice:
    return slice(cells.start * step, cells.stop * step)
