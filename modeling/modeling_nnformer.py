"""nnFormer (Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023): Swin
windows in volumes, convolutions between resolutions, and attention to the skip connections.

`variant="2021"` is the first published version; with `num_global_tokens=1` it is GLAM-nnFormer (Themyr et al., WACV
2023). `contextseg-convert` converts the authors' weights. Relative positions have one row per offset and windows the
configured size, unlike the authors' code, whose rules are options for converted weights. No key of a window is padding, whether it
fills up the window or is outside `pixel_mask`. Convolutions read it as they do zeros, so logits near it depend on it.

Legend: B batch, C channels, D, H, W slices, rows and columns, K labels.
"""

from functools import partial

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_nnformer import NnFormerConfig
from .attention import Attention
from .blocks import Decoded
from .decoder_nnformer import NnFormerStep
from .deep_supervision import deep_supervision_loss
from .label_rows import VolumeClassifier
from .modeling_segmentation import SegmentationModel
from .modeling_staged import StagedBackbone, StagedModel, stage_sizes
from .pretrained import ContextsegPreTrainedModel
from .pyramid_encoder import PyramidEncoder
from .skip_attention import AddedSkip, SkipAttentionBlock
from .swin_stages import StageSizes, SwinStage
from .volume_embedding import VolumeDownsampling, VolumeEmbedding, VolumeUpsampling
from .windows import cropped


def nnformer_stage_sizes(config: NnFormerConfig, stage: int) -> StageSizes:
    """Returns the sizes of a stage of the encoder."""
    return stage_sizes(config, stage)._replace(
        num_global_tokens=config.num_global_tokens,
        global_position_embedding=config.global_position_embedding,
        global_position_rows=config.position_rows(stage),
        global_block=config.global_block,
        global_clamp=config.global_clamp,
        shifts_windows=not config.is_one_window(stage),
        masks_shifted_windows=config.mask_shifted_windows,
        masks_padding=not config.fixed_grid,
        position_index=config.relative_positions,
    )


def build_nnformer_encoder(config: NnFormerConfig, num_stages: int) -> PyramidEncoder:
    """Builds the first `num_stages` stages of the encoder."""
    eps, dims = config.layer_norm_eps, config.hidden_sizes
    embeds = [VolumeEmbedding(config.num_channels, config.embed_dim, tuple(config.patch_size), eps)]
    for stage, stride in enumerate(config.reductions[: num_stages - 1]):
        pads = config.pad_last_downsample or stage < config.num_layers - 2
        overlaps = config.variant == "2022"
        embeds.append(VolumeDownsampling(dims[stage], dims[stage + 1], stride, overlaps, pads, eps))
    stages = [SwinStage(config, nnformer_stage_sizes(config, stage)) for stage in range(num_stages)]
    return PyramidEncoder(embeds, stages)


def build_nnformer_step(config: NnFormerConfig, stage: int) -> NnFormerStep:
    """Builds the decoder's step to a stage."""
    eps, dims = config.layer_norm_eps, config.hidden_sizes
    adds_slice = not config.pad_last_downsample and stage == config.num_layers - 2
    upsample = VolumeUpsampling(dims[stage + 1], dims[stage], config.reductions[stage], int(adds_slice), eps)
    sizes = nnformer_stage_sizes(config, stage)._replace(
        num_heads=config.decoder_num_heads[stage],
        drop_path_rates=tuple(config.drop_path_rates_of_decoder(stage)),
    )
    if config.variant == "2021":
        return NnFormerStep(upsample, AddedSkip(), SwinStage(config, sizes))
    first, *others = sizes.drop_path_rates
    shifted = sizes._replace(  # all of its windows, as in the authors' code
        depth=len(others),
        drop_path_rates=tuple(others),
        shifted_blocks=(True,) * len(others),
        num_global_tokens=sizes.num_global_tokens if others else 0,
    )
    return NnFormerStep(upsample, SkipAttentionBlock(config, sizes, first), SwinStage(config, shifted))


class NnFormerPreTrainedModel(ContextsegPreTrainedModel):
    """Base class of the nnFormer models."""

    config: NnFormerConfig
    _no_split_modules = ["SwinBlock", "SkipAttentionBlock"]
    _can_record_outputs = {"attentions": OutputRecorder(Attention, index=1)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the authors: linear layers and convolutions as PyTorch does it, which narrow networks need to learn."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv3d | nn.ConvTranspose3d | VolumeClassifier):
            labels_first = isinstance(module, VolumeClassifier)  # unlike other transposed convolutions
            bound = (module.weight[:, 0] if labels_first else module.weight[0]).numel() ** -0.5
            for weight in module.parameters(recurse=False):
                init.uniform_(weight, -bound, bound)


class NnFormerModel(StagedModel, NnFormerPreTrainedModel):
    """nnFormer encoder with a final layer norm and no head.

    Returns `last_hidden_state` (B, N, C) and its mean over the tokens, `pooler_output` (B, C).

    Args:
        config: Configuration of the encoder.
    """

    def __init__(self, config: NnFormerConfig) -> None:
        super().__init__(config, build_nnformer_encoder(config, config.num_layers))


class NnFormerBackbone(StagedBackbone, NnFormerPreTrainedModel):
    """nnFormer encoder as a backbone.

    Returns one layer-normed feature map (B, C, D/stride, H/stride, W/stride) for each stage in `config.out_features`.

    Args:
        config: Configuration of the encoder; `out_features` selects the stages.
    """

    def __init__(self, config: NnFormerConfig) -> None:
        super().__init__(config, build_nnformer_encoder(config, config.num_backbone_stages))
        self.strides = [config.strides[max(stage - 1, 0)] for stage in config.out_stages]


class NnFormerForSemanticSegmentation(SegmentationModel, NnFormerPreTrainedModel):
    """nnFormer, or GLAM-nnFormer with global tokens: logits (B, K, D, H, W) for volumes (B, C, D, H, W) of any size.

    Args:
        config: Configuration of encoder, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: NnFormerConfig) -> None:
        super().__init__(config, NnFormerBackbone(config), partial(build_nnformer_step, config))

    def logits_of(self, decoded: Decoded, pixel_values: Tensor) -> Tensor:
        """Decoded features, (B, C, D, H, W) -> (B, K, D, H, W), without the padding to whole patches."""
        return cropped(super().logits_of(decoded, pixel_values), tuple(pixel_values.shape[2:]))

    def compute_loss(
        self,
        logits: Tensor,
        decoded: Decoded,
        feature_maps: tuple[Tensor, ...],  # noqa: ARG002 - families differ
        labels: Tensor,
    ) -> Tensor:
        """(B, K, D, H, W), ..., (B, D, H, W) -> scalar, the weighted sum of the losses of all heads."""
        outputs = [logits]
        kernels, strides = self.config.head_kernels[1:], self.config.strides[1:]
        for level, coarser in enumerate(self.decoder.coarser_logits(decoded.coarser_maps)):
            voxel = zip(logits.shape[2:], strides[level], kernels[level], strict=True)
            whole = tuple(max(size * kernel // stride, 1) for size, stride, kernel in voxel)
            outputs.append(cropped(coarser, whole))
        weights = self.config.deep_supervision_weights
        return deep_supervision_loss(outputs, labels, weights, **self.loss_options())


__all__ = [
    "NnFormerBackbone",
    "NnFormerForSemanticSegmentation",
    "NnFormerModel",
    "NnFormerPreTrainedModel",
]
