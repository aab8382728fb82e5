"""U-Net decoders that mirror their encoder.

Swin-Unet (Cao et al., 2021), with GLAM's global tokens and non-local upsampling (Themyr et al., WACV 2023,
Fig. 2 and 4), and the same for our other hierarchical encoders. `decoder_pyramid_unet` is for all others.

Each step upsamples, concatenates the skip connection, and runs a stage like the encoder's stage at that
resolution, with weights of its own. As in Swin-Unet, skips are the inputs of the encoder's stages, and the
bottleneck stage is not repeated. A final expansion restores the pixel resolution.

Legend: B batch, C channels, G... grid axes, g... those of the next coarser grid, S... image axes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..configuration.checked_config import choose
from .blocks import Decoded
from .label_rows import LabelClassifier, VoxelClassifier
from .nonlocal_upsampling import UPSAMPLINGS, UpsamplingSizes
from .patches import PatchExpand, patches_with_image


class UnetStep(nn.Module):
    """Decodes from one resolution to the next finer one.

    Args:
        upsample: Module from features (B, g..., C'), the skip (B, G..., C) and a mask (B, g...) to features
            (B, G..., C).
        dim: Channels C of the finer resolution.
        stage: Module from features (B, G..., C) and a mask (B, G...) to features of the same shape.
    """

    def __init__(self, upsample: nn.Module, dim: int, stage: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.fuse = nn.Linear(2 * dim, dim)
        self.stage = stage

    def forward(self, features: Tensor, skip: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, g..., C'), skip (B, G..., C), optional padding mask (B, S...), 1 for image -> (B, G..., C)."""
        features = self.upsample(features, skip, patches_with_image(pixel_mask, features))
        features = self.fuse(torch.cat([features, skip], dim=-1))
        return self.stage(features, patches_with_image(pixel_mask, features))


class UnetDecoder(nn.Module):
    """The U-Net decoder: from the features of all encoder stages to one map at pixel resolution.

    Args:
        steps: Decoder steps, coarse to fine.
        dim: Channels of the finest stage.
        patch: Size of the encoder's patches in pixels, one entry per axis.
        layer_norm_eps: Epsilon of the layer norms.
    """

    def __init__(
        self, steps: Sequence[UnetStep], dim: int, patch: tuple[int, ...], layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.expand = PatchExpand(dim, dim, patch, layer_norm_eps)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:
        """Maps (B, C_i, G_i...), fine to coarse -> (B, C_0, patch * G_0...).

        Args:
            feature_maps: Inputs of all encoder stages but the last, and the output of the last.
            pixel_mask: Optional padding mask (B, S...), 1 for image and 0 for padding.
        """
        *skips, features = [feature_map.movedim(1, -1) for feature_map in feature_maps]
        for step, skip in zip(self.steps, skips[::-1], strict=True):
            features = step(features, skip, pixel_mask)
        return Decoded(self.expand(self.norm(features)).movedim(-1, 1))


def build_unet(config: PreTrainedConfig, build_stage: Callable[[int], nn.Module]) -> UnetDecoder:
    """Builds the decoder that mirrors a hierarchical encoder.

    Args:
        config: A `UnetDecodingConfig`.
        build_stage: Builds a stage like the encoder's from its index. The decoder has all stages but the last.

    Raises:
        ValueError: If the configuration does not suit the decoder "unet".
    """
    config.validate_unet()  # again: `from_pretrained` changes fields after the first check
    upsample = choose("upsampling", config.upsampling, UPSAMPLINGS)
    steps = [
        UnetStep(
            upsample(config, upsampling_sizes(config, stage)),
            config.hidden_sizes[stage],
            build_stage(stage),
        )
        for stage in reversed(range(config.num_layers - 1))
    ]
    return UnetDecoder(steps, config.hidden_sizes[0], config.patch, config.layer_norm_eps)


def unet_classifier(config: PreTrainedConfig) -> LabelClassifier | VoxelClassifier:
    """Builds the classifier of the decoder's pixels or voxels, without a bias, as in Swin-Unet."""
    classifier = VoxelClassifier if getattr(config, "num_axes", 2) == 3 else LabelClassifier
    return classifier(config.decoder_hidden_size, config.num_labels, 1, bias=False)


def upsampling_sizes(config: PreTrainedConfig, stage: int) -> UpsamplingSizes:
    """The sizes of the upsampling to a stage; its stochastic depth is that of the encoder's stage."""
    return UpsamplingSizes(
        dim=config.hidden_sizes[stage + 1],
        out_dim=config.hidden_sizes[stage],
        num_heads=config.upsampling_heads(stage),
        window=config.stage_window(stage),
        factor=config.reductions[stage],
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rates(stage)[0],
        layer_norm_eps=config.layer_norm_eps,
        bias=config.nonlocal_bias,
        shortcut=config.nonlocal_shortcut,
    )
