"""Unet decoders that mirror their encoder: Swin-Unet (Cao et al., 2021), with GLAM's global tokens and non-local upsampling
(Themyr et al., WACV 2023, Fig. 2 and 4), and the same for other families in stages.

Each step upsamples, joins the skip connection, and runs a stage of the encoder's kind: the mirror image of the stage
whose resolution it reaches, with weights of its own. Skips are the features that enter the encoder's stages, as in
Swin-Unet; the bottleneck stage is not repeated. A last expansion returns to single pixels.

Legend: B batch, C channels, G... grid axes, S... image axes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..configuration.checked_config import choose
from .blocks import Decoded
from .nonlocal_upsampling import UPSAMPLINGS, UpsamplingSizes
from .patches import PatchExpand, patches_with_image


class UnetStep(nn.Module):
    """From one resolution to the next finer one.

    upsample: from features (B, g..., C'), the skip (B, G..., C) and a mask (B, g...) to features (B, G..., C).
    stage: from features (B, G..., C) and a mask (B, G...) to features of the same shape.
    """

    def __init__(self, upsample: nn.Module, dim: int, stage: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.fuse = nn.Linear(2 * dim, dim)
        self.stage = stage

    def forward(self, features: Tensor, skip: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, g..., C'), (B, G..., C), optional (B, S...) one where there is image -> (B, G..., C)."""
        features = self.upsample(features, skip, patches_with_image(pixel_mask, features))
        features = self.fuse(torch.cat([features, skip], dim=-1))
        return self.stage(features, patches_with_image(pixel_mask, features))


class UnetDecoder(nn.Module):
    """The inputs of all stages but the last one, and the output of that -> one map with a cell for each pixel.

    steps: coarse to fine. dim: width of the finest stage. patch: size of the encoder's patches.
    """

    def __init__(
        self, steps: Sequence[UnetStep], dim: int, patch: tuple[int, ...], layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.expand = PatchExpand(dim, dim, patch, layer_norm_eps)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:
        """Maps (B, C_i, G_i...), fine to coarse, optional (B, S...) one where there is image -> (B, C_0, patch * G_0...)."""
        *skips, features = [feature_map.movedim(1, -1) for feature_map in feature_maps]
        for step, skip in zip(self.steps, skips[::-1], strict=True):
            features = step(features, skip, pixel_mask)
        return Decoded(self.expand(self.norm(features)).movedim(-1, 1))


def build_unet(config: PreTrainedConfig, build_stage: Callable[[int], nn.Module] | None) -> UnetDecoder:
    """The mirror image of an encoder in stages; its bottleneck is not repeated.

    config: a `UnetDecodingConfig`.
    build_stage: gives a stage of the encoder's kind by its number; the decoder has all but the last.
    """
    if build_stage is None:
        raise ValueError(
            f"decoder 'unet' mirrors an encoder in stages of ours, and a '{config.model_type}' model has none. "
            "Use another decoder, or a model of the family 'cswin', 'glam_swin' or 'maformer'."
        )
    config.validate_unet()  # once more: `from_pretrained` changes fields of a configuration that was checked before
    upsample = choose("upsampling", config.upsampling, UPSAMPLINGS)
    steps = [
        UnetStep(
            upsample(config, upsampling_sizes(config, stage)),
            config.hidden_sizes[stage],
            build_stage(stage),
        )
        for stage in reversed(range(config.num_layers - 1))
    ]
    return UnetDecoder(steps, config.hidden_sizes[0], (config.patch_size,) * 2, config.layer_norm_eps)


def upsampling_sizes(config: PreTrainedConfig, stage: int) -> UpsamplingSizes:
    """The numbers of the step up to a stage, whose paths are dropped as in the encoder's stage."""
    return UpsamplingSizes(
        dim=config.hidden_sizes[stage + 1],
        out_dim=config.hidden_sizes[stage],
        num_heads=config.upsampling_heads(stage),
        window=(config.stage_window(stage),) * 2,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rates(stage)[0],
        layer_norm_eps=config.layer_norm_eps,
        bias=config.nonlocal_bias,
        shortcut=config.nonlocal_shortcut,
    )
