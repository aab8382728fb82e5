"""MAFormer (Wang et al., arXiv 2209.01620): at high resolution, blocks with a local branch in cross-shaped
windows and a learned global branch, fused by attention; at low resolution, plain ViT blocks.

The authors published neither code nor weights. We read Global Learning with Down-sampling as a fully
connected layer over an average-pooled map, not over all tokens: only then do parameters and multiply-adds
(MACs) of B and L match the paper. No design matches both the S and the B row; S with the published depths has
5.1G MACs, the paper says 4.5G (`MaformerConfig`).

Legend: B batch, H, W image height and width, C channels, K labels, h, w height and width of the last stage's
grid, N = h * w.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.checked_config import choose
from ..configuration.configuration_maformer import MaformerConfig
from .attention import Attention
from .cross_shaped import CrossShapedAttention, StripeAttention
from .global_learning import GLOBAL_BRANCHES, GlobalFusion, MafBlock, ShiftedWindowBlock
from .modeling_segmentation import SegmentationModel
from .modeling_staged import StagedBackbone, StagedForImageClassification, StagedModel, stage_sizes
from .patches import PatchEmbed
from .pretrained import ContextsegPreTrainedModel
from .pyramid_encoder import BlockStage, GridAttention, PreNormBlock, PyramidEncoder
from .swin_stages import StageSizes

TOKEN_VOTE = 0.5  # weight of the token head in the class logits, as in LV-ViT


def build_block(config: MaformerConfig, stage: int, index: int) -> nn.Module:
    """Builds one block: a MAF block in stages that have a stripe width, a ViT block in the others."""
    sizes = stage_sizes(config, stage)
    if stage < len(config.stripe_widths):
        return maf_block(config, sizes, config.stripe_widths[stage], index)
    return pre_norm_block(GridAttention(config, sizes.dim, sizes.num_heads), sizes, index)


def maf_block(config: MaformerConfig, sizes: StageSizes, stripe_width: int, index: int) -> MafBlock:
    """Builds a MAF block: the local branch, the global branch and their fusion, as configured."""
    rate = sizes.drop_path_rates[index]
    if config.local_attention == "shifted_window":
        local = ShiftedWindowBlock(config, sizes, rate, shifted=index % 2 == 1)
    else:
        attention = CrossShapedAttention(config, sizes.dim, sizes.num_heads, stripe_width)
        local = pre_norm_block(attention, sizes, index)
    if config.global_branch == "none":
        return MafBlock(local, None)
    build_branch = choose("global branch", config.global_branch, GLOBAL_BRANCHES)
    branch = build_branch(sizes.dim, config.gld_grid_size, config.gld_ratio)
    fusion = GlobalFusion(config, sizes, branch, rate)
    return MafBlock(local, fusion, is_serial=config.fusion == "local_enhanced")


def pre_norm_block(attention: nn.Module, sizes: StageSizes, index: int) -> PreNormBlock:
    return PreNormBlock(
        attention, sizes.dim, sizes.mlp_ratio, sizes.drop_path_rates[index], sizes.layer_norm_eps
    )


def build_maformer_stage(config: MaformerConfig, stage: int) -> BlockStage:
    """Builds the blocks of one stage."""
    blocks = range(config.depths[stage])
    return BlockStage(build_block(config, stage, index) for index in blocks)


def build_maformer_encoder(config: MaformerConfig, num_stages: int) -> PyramidEncoder:
    """Builds the first `num_stages` stages of the encoder."""
    eps = config.layer_norm_eps
    widths = [config.num_channels, *config.hidden_sizes]
    steps = [config.patch_size] + [2] * (num_stages - 1)
    embeds = [
        PatchEmbed(widths[stage], widths[stage + 1], (step, step), eps) for stage, step in enumerate(steps)
    ]
    return PyramidEncoder(embeds, [build_maformer_stage(config, stage) for stage in range(num_stages)])


class MaformerPreTrainedModel(ContextsegPreTrainedModel):
    """Base class of the MAFormer models."""

    config: MaformerConfig
    _no_split_modules = ["MafBlock", "PreNormBlock"]
    # One recorder for both classes: transformers would read a list of two as self- and cross-attention.
    _can_record_outputs = {"attentions": OutputRecorder((StripeAttention, Attention), index=1)}


class MaformerModel(StagedModel, MaformerPreTrainedModel):
    """MAFormer encoder with a final layer norm and no head.

    Returns `last_hidden_state` (B, N, C) and its mean over the tokens, `pooler_output` (B, C).

    There are no public weights, and no design matches all of the paper's parameter and MAC counts: see
    `MaformerConfig`.

    Args:
        config: Configuration of the encoder.
    """

    def __init__(self, config: MaformerConfig) -> None:
        super().__init__(config, build_maformer_encoder(config, config.num_layers))


class MaformerBackbone(StagedBackbone, MaformerPreTrainedModel):
    """MAFormer encoder as a backbone.

    Returns one layer-normed feature map (B, C, H/stride, W/stride) for each stage in `config.out_features`.

    Args:
        config: Configuration of the encoder; `out_features` selects the stages.
    """

    def __init__(self, config: MaformerConfig) -> None:
        super().__init__(config, build_maformer_encoder(config, config.num_backbone_stages))


class MaformerForImageClassification(StagedForImageClassification, MaformerPreTrainedModel):
    """MAFormer encoder with a linear classifier on the mean of its tokens.

    With `config.use_token_labels` a second linear classifier is applied to every token, as in LV-ViT. It is
    trained on `token_labels`, and half of the maximum of its logits over the tokens is added to the class
    logits.

    Args:
        config: Configuration of the encoder; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: MaformerConfig) -> None:
        super().__init__(config, MaformerModel(config))
        self.token_classifier = None
        if config.use_token_labels:
            self.token_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        token_labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutput:
        """(B, C, H, W) -> logits (B, K); with labels, also the loss.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            labels: (B,), class ids.
            token_labels: (B, K, h, w), probability of each class for each token; or (B, h, w), class ids,
                with -100 for tokens without a label. Needs `config.use_token_labels`.
            output_hidden_states: Whether to return the feature maps of the patch embedding and of every
                stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, if the model has no token head for `token_labels`, or if
                attentions are requested from another attention implementation.
        """
        check_token_labels(self.config, pixel_values, token_labels)
        hidden_states, attentions = self.asked_outputs(output_hidden_states, output_attentions)
        outputs = self.backbone(
            pixel_values, output_hidden_states=hidden_states, output_attentions=attentions, return_dict=True
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        if self.token_classifier is not None:
            token_logits = self.token_classifier(outputs.last_hidden_state)
            logits = logits + TOKEN_VOTE * token_logits.amax(dim=1)
        if token_labels is not None:
            token_loss = token_label_loss(token_logits, token_labels)
            loss = self.config.token_label_loss_weight * token_loss + (0.0 if loss is None else loss)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MaformerForSemanticSegmentation(SegmentationModel, MaformerPreTrainedModel):
    """MAFormer encoder with a decoder, Semantic FPN by default, one of the two in Table 7 of the paper.

    With `decoder="unet"`, which is not in the paper, the decoder mirrors the stages of the encoder, as
    Swin-Unet does with Swin.

    Args:
        config: Configuration of encoder, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: MaformerConfig) -> None:
        super().__init__(config, MaformerBackbone(config), partial(build_maformer_stage, config))


def token_label_loss(token_logits: Tensor, token_labels: Tensor) -> Tensor:
    """(B, N, K), class probabilities (B, K, h, w) or class ids (B, h, w) -> scalar, mean cross-entropy."""
    logits = token_logits.transpose(1, 2).float()
    if token_labels.dim() == 4:
        return F.cross_entropy(logits, token_labels.flatten(2).float())
    return F.cross_entropy(logits, token_labels.flatten(1))


def check_token_labels(config: MaformerConfig, pixel_values: Tensor, token_labels: Tensor | None) -> None:
    """Raises ValueError unless the model has a token head and `token_labels` has one label per token."""
    if token_labels is None:
        return
    if not config.use_token_labels:
        raise ValueError(
            "got token_labels, but the model has no token head. Set use_token_labels=True in its config."
        )
    stride = config.patch_size * 2 ** (config.num_layers - 1)
    grid = tuple((side + stride - 1) // stride for side in pixel_values.shape[-2:])
    batch, classes = pixel_values.shape[0], config.num_labels
    if tuple(token_labels.shape) not in ((batch, classes, *grid), (batch, *grid)):
        raise ValueError(
            f"token_labels has shape {tuple(token_labels.shape)}; {(batch, classes, *grid)} (class "
            f"probabilities) or {(batch, *grid)} (class ids) is required. "
            "Resize the label map to the grid of the last stage."
        )


__all__ = [
    "MaformerBackbone",
    "MaformerForImageClassification",
    "MaformerForSemanticSegmentation",
    "MaformerModel",
    "MaformerPreTrainedModel",
]
