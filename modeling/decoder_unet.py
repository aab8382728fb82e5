"""Swin-Unet's decoder with GLAM's global tokens and non-local upsampling (Themyr et al., WACV 2023, Fig. 2 and 4).

Each step upsamples, joins the skip connection, and runs a stage of the encoder's kind: the mirror image of the stage
whose resolution it reaches, with global tokens of its own. Skips are the features that enter the encoder's stages, as
in Cao et al., "Swin-Unet", 2021; the bottleneck stage is not repeated. A last expansion returns to single pixels.

Legend: B batch, C channels, G... grid axes, S... image axes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .blocks import Decoded
from .nonlocal_upsampling import UPSAMPLINGS, UpsamplingSizes
from .patches import PatchExpand
from .swin_stages import StageSizes, SwinStage, patches_with_image


class UnetStep(nn.Module):
    """From one resolution to the next finer one."""

    def __init__(
        self, config: PreTrainedConfig, upsampling: str, upsampling_sizes: UpsamplingSizes, sizes: StageSizes
    ) -> None:
        super().__init__()
        self.upsample = UPSAMPLINGS[upsampling](config, upsampling_sizes)
        self.fuse = nn.Linear(2 * sizes.dim, sizes.dim)
        self.stage = SwinStage(config, sizes)

    def forward(self, features: Tensor, skip: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, g..., 2 C), (B, G..., C), optional (B, S...) one where there is image -> (B, G..., C)."""
        features = self.upsample(features, skip, patches_with_image(pixel_mask, features))
        features = self.fuse(torch.cat([features, skip], dim=-1))
        return self.stage(features, patches_with_image(pixel_mask, features))


class UnetDecoder(nn.Module):
    """The inputs of all stages but the last one, and the output of that -> one map with a cell for each pixel.

    stages: numbers of the decoder's stages, coarse to fine; upsampling_sizes: those of the step before each.
    patch: size of the encoder's patches.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        upsampling: str,
        upsampling_sizes: Sequence[UpsamplingSizes],
        stages: Sequence[StageSizes],
        patch: tuple[int, ...],
    ) -> None:
        super().__init__()
        dim, eps = stages[-1].dim, stages[-1].layer_norm_eps
        self.steps = nn.ModuleList(
            UnetStep(config, upsampling, *sizes) for sizes in zip(upsampling_sizes, stages, strict=True)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.expand = PatchExpand(dim, dim, patch, eps)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:
        """Maps (B, C_i, G_i...), fine to coarse, optional (B, S...) one where there is image -> (B, C_0, patch * G_0...)."""
        *skips, features = [feature_map.movedim(1, -1) for feature_map in feature_maps]
        for step, skip in zip(self.steps, skips[::-1], strict=True):
            features = step(features, skip, pixel_mask)
        return Decoded(self.expand(self.norm(features)).movedim(-1, 1))
