"""Parts of masked image modeling (SimMIM, Xie et al., CVPR 2022): the mask, the vector in place of masked patches, the
head that predicts pixels, and the loss on masked pixels.

The mask consists of square units of 32 pixels, larger than a patch, so that a masked pixel cannot be copied from
its neighbors.

Legend: B batch, C channels, G... grid axes of patches, h, w grid of the last stage, H, W height and width.
"""

from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .blocks import Revise
from .windows import crop, plan_windows

MASK_UNIT = 32  # pixels
MASKED_SHARE = 0.75  # of the units; the authors of SimMIM mask 0.6


class MaskVector(nn.Module):
    """A learned vector in place of masked patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, features: Tensor, masked: Tensor) -> Tensor:
        """(B, G..., C), (B, G...), true for masked -> (B, G..., C)."""
        return torch.where(masked[..., None], self.weight.to(features.dtype), features)

    def on_patches(self, masked: Tensor) -> Revise:
        """(B, G...) -> function for encoders that masks what comes out of the patch embedding."""
        return lambda level, features: features if level else self(features, masked)

    def reset_own_weights(self, std: float) -> None:
        init.normal_(self.weight, std=std)


class PixelHead(nn.Module):
    """Predicts the pixels below each position of the last feature map by one linear map."""

    def __init__(self, dim: int, num_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.projection = nn.Linear(dim, stride**2 * num_channels)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h, w, C) and the size (H, W) of the images -> (B, C', H, W)."""
        pixels = F.pixel_shuffle(self.projection(features).movedim(-1, 1), self.stride)
        return crop(pixels.movedim(1, -1), size).movedim(-1, 1)


def random_mask(
    batch: int,
    grid: tuple[int, ...],
    unit: int,
    share: float = MASKED_SHARE,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """-> (B, G...), true for masked patches: a share of all units, drawn for each image.

    Args:
        batch: Number of images.
        grid: Patches along each axis.
        unit: Side of a unit in patches; units at the end of an axis may be smaller.
        share: Share of masked units, rounded up.
        generator: Source of randomness; PyTorch's own by default.
        device: Device of the mask.
    """
    windows = plan_windows(grid, (unit,) * len(grid))
    count = prod(windows.counts)
    values = torch.rand(
        batch, count, generator=generator, device=device if generator is None else generator.device
    )
    chosen = values.argsort(dim=1)[:, : ceil(share * count)].to(device)
    masked = torch.zeros(batch, count, dtype=torch.bool, device=device).scatter(1, chosen, True)
    return crop(enlarged(masked.reshape(batch, *windows.counts), unit), grid)


def enlarged(mask: Tensor, factor: int) -> Tensor:
    """(B, G...) -> (B, factor * G...), each position repeated along every axis."""
    for axis in range(1, mask.ndim):
        mask = mask.repeat_interleave(factor, dim=axis)
    return mask


def masked_footprint(size: tuple[int, ...], patch: int, ratio: int, device: torch.device) -> Tensor:
    """-> (G...), true for the patches of a context that contain any pixel of its local crop.

    Args:
        size: Sides of the local crop, and of the context, in pixels.
        patch: Side of a patch in pixels.
        ratio: Pixels of the local crop along each axis of a pixel of the context.
        device: Device of the mask.
    """
    masked = torch.ones((), dtype=torch.bool, device=device)
    for side in size:
        before, cell = (ratio - 1) * side // 2, ratio * patch  # in pixels of the local crop
        start = torch.arange((side + patch - 1) // patch, device=device) * cell
        masked = masked[..., None] & (start + cell > before) & (start < before + side)
    return masked


def patch_mask(bool_masked_pos: Tensor, grid: tuple[int, ...], batch: int) -> Tensor:
    """(B, N) or (B, G...) -> (B, G...), true for masked patches.

    Raises:
        ValueError: If the shape is another one.
    """
    shape = tuple(bool_masked_pos.shape)
    if shape not in ((batch, prod(grid)), (batch, *grid)):
        raise ValueError(
            f"bool_masked_pos has shape {shape}; {(batch, prod(grid))} or {(batch, *grid)} is required, with true for each "
            "patch to mask."
        )
    return bool_masked_pos.reshape(batch, *grid).bool()


def masked_l1(reconstruction: Tensor, pixel_values: Tensor, masked: Tensor) -> Tensor:
    """Twice (B, C, H, W), (B, H, W), true for masked pixels -> scalar, mean absolute error of masked pixels.

    0 if no pixel is masked.
    """
    error = (reconstruction.float() - pixel_values.float()).abs() * masked[:, None]
    return error.sum() / (masked.sum() * pixel_values.shape[1]).clamp(min=1)
