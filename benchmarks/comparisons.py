"""The comparisons of contextseg-benchmark: pairs of models that do the same work.

To add a comparison, add an entry to `WORKS`.

Legend: B batch, C channels, K classes, h, w feature map axes, H, W image axes.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from contextseg import (
    CswinBackbone,
    CswinConfig,
    GlamSwinBackbone,
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    MaformerBackbone,
    MaformerConfig,
    MaformerForSemanticSegmentation,
    SegDeformerConfig,
    SegDeformerForSemanticSegmentation,
)
from contextseg.modeling.blocks import BatchNorm2d
from contextseg.modeling.decoder_segdeformer import ContextMining, SegDeformerDecoder
from contextseg.modeling.losses import segmentation_loss
from contextseg.processing.logits_to_masks import upsampled_argmax

from .measuring import macs
from .reference_segdeformer import ReferenceSegDeformer

NUM_LABELS = 150
MIT_STRIDES = (4, 8, 16, 32)
MIT_B2_CHANNELS = (64, 128, 320, 512)
DECODER_WIDTH = 256
MID_LOSS_WEIGHT = 0.4  # the paper's alpha


class Pair(NamedTuple):
    """Two models for the same task, and notes for the reader."""

    ours: nn.Module
    theirs: nn.Module
    notes: list[str]


@dataclass(frozen=True)
class Work:
    """One comparison.

    Args:
        title: Heading of the section on the page.
        build: Builds the pair of models; its argument is whether to make them very small.
        job: Builds the function to measure from a model, a batch size and an image size (H, W). If the model
            is in training mode, the function returns the loss.
        is_about_glam: Whether the page then gets the section on the memory of global attention.
        modes: "inference", "training step" or both.
    """

    title: str
    build: Callable[[bool], Pair]
    job: Callable[[nn.Module, int, tuple[int, int]], Callable[[], Tensor | object]]
    is_about_glam: bool = False
    modes: tuple[str, ...] = ("inference", "training step")


class SegmentationHead(nn.Module):
    """A decoder and its classifier, without a backbone."""

    def __init__(
        self, decoder: nn.Module, dim: int, label_loss: Callable[[Tensor, Tensor], Tensor] = segmentation_loss
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.classifier = nn.Conv2d(dim, NUM_LABELS, kernel_size=1)
        self.label_loss = label_loss

    def forward(self, feature_maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> logits and mid-level logits, each (B, K, h, w)."""
        decoded = self.decoder(feature_maps)
        return self.classifier(decoded.feature_map), decoded.mid_logits

    def loss(self, feature_maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Feature maps (B, C_i, h_i, w_i), labels (B, H, W) -> scalar loss."""
        logits, mid_logits = self(feature_maps)
        return self.label_loss(logits, labels) + MID_LOSS_WEIGHT * self.label_loss(mid_logits, labels)


def upernet_swin(is_small: bool, num_global_tokens: int) -> Pair:
    """GLAM-Swin with UPerNet and transformers' Swin-T with UPerNet; the weights they share are equal."""
    tiny = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    small = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
    sizes = small if is_small else tiny
    config = UperNetConfig(
        backbone_config=SwinConfig(**sizes, out_indices=[1, 2, 3, 4], drop_path_rate=0.3),
        num_labels=NUM_LABELS,
        hidden_size=16 if is_small else 512,
        auxiliary_in_channels=4 * sizes["embed_dim"],
        auxiliary_channels=16 if is_small else 256,
    )
    theirs = UperNetForSemanticSegmentation(config)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = GlamSwinForSemanticSegmentation.from_swin(
            folder, num_global_tokens=num_global_tokens, drop_path_rate=0.3
        )
    whole_image = theirs.decode_head.psp_modules.blocks[0].layers[1]
    whole_image.batch_norm = BatchNorm2d(whole_image.batch_norm.num_features)
    notes = [
        "Both models have the same weights, except for those that only GLAM has (global tokens and their attention). "
        "150 classes, auxiliary head, stochastic depth 0.3.",
        f"Attention implementation: ours `{ours.config._attn_implementation}`, transformers "
        f"`{theirs.backbone.config._attn_implementation}` (the default of each).",
        "transformers cannot train with a batch of one, because one batch norm then sees a single value per channel. "
        "That layer is replaced by ours.",
    ]
    return Pair(ours, theirs, notes)


def image_job(model: nn.Module, batch: int, size: tuple[int, int]) -> Callable[[], Tensor | list[Tensor]]:
    """A function from images to masks, or to the loss if the model is in training mode."""
    pixels = torch.randn(batch, 3, *size, device=model.device)
    labels = torch.randint(NUM_LABELS, (batch, *size), device=model.device)
    if model.training:
        return lambda: model(pixel_values=pixels, labels=labels).loss
    return lambda: masks(model(pixel_values=pixels).logits, size)


def masks(logits: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """(B, K, h, w) -> B masks (H, W); volumes likewise. Some models upsample their logits themselves, ours do not."""
    if logits.shape[2:] == size:
        return list(logits.argmax(dim=1))
    return [upsampled_argmax(image_logits[None], size)[0] for image_logits in logits]


def segdeformer_head(is_small: bool, neck: str = "conv", reduction_ratio: int = 1) -> SegmentationHead:
    """The decoder and the classifier of SegDeformer-B2 for ADE20K."""
    width = 16 if is_small else DECODER_WIDTH
    config = PreTrainedConfig(attn_implementation="sdpa")
    mining = ContextMining(neck, reduction_ratio=reduction_ratio)
    decoder = SegDeformerDecoder(config, MIT_B2_CHANNELS, width, NUM_LABELS, mining, dropout=0.0)
    return SegmentationHead(decoder, width)


def segdeformer(is_small: bool, neck: str) -> Pair:
    """Our head and a literal implementation of its equations, with the same weights."""
    ours = segdeformer_head(is_small, neck)
    width = ours.classifier.in_channels
    decoder = ReferenceSegDeformer(MIT_B2_CHANNELS, width, NUM_LABELS, use_batch_norm=neck != "linear")
    theirs = SegmentationHead(decoder, width, enlarged_cross_entropy)
    theirs.load_state_dict(ours.state_dict())
    notes = [
        "Only the head, on random feature maps with the shapes of MiT-B2: decoder of width 256, classifier for 150 classes. "
        "Inference ends with logits at a quarter of the image size; training adds 0.4 times the loss of the mid-level logits.",
        "Theirs is the equations one by one: levels concatenated at the finest size, one matrix product per projection, "
        "attention that stores its matrix, logits upsampled to image size before the loss. Both have the same weights and, up to "
        "rounding, the same results.",
        "A training step gains less than inference: attention that stores no matrix recomputes the scores in the backward pass, "
        "seven products instead of six.",
    ]
    return Pair(ours, theirs, notes)


def segdeformer_efficient(is_small: bool) -> Pair:
    """Efficient attention (section 3.4 of the paper) and full attention."""
    notes = [
        "Both are ours, for the same task as above: attention with one key and value per 4 x 4 positions "
        "(`reduction_ratio=4`) vs. attention to every position. The two are different models with different results."
    ]
    return Pair(segdeformer_head(is_small, reduction_ratio=4), segdeformer_head(is_small), notes)


def segformer(is_small: bool, reduction_ratio: int) -> Pair:
    """SegDeformer on MiT-B0 and transformers' SegFormer-B0, which has the same encoder."""
    sizes = {"depths": [1, 1, 1, 1], "decoder_hidden_size": 16} if is_small else {}
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=NUM_LABELS))
    ours = SegDeformerForSemanticSegmentation(
        SegDeformerConfig(
            backbone_config=SegformerConfig(**sizes),
            decoder_hidden_size=theirs.config.decoder_hidden_size,
            reduction_ratio=reduction_ratio,
            num_labels=NUM_LABELS,
        )
    )
    notes = [
        "Whole models on the same encoder, with decoders of 256 channels and 150 classes, from images to masks or to the loss. "
        f"SegDeformer attends to one key and value per {reduction_ratio} x {reduction_ratio} positions."
    ]
    return Pair(ours, theirs, notes)


def head_job(
    head: SegmentationHead, batch: int, size: tuple[int, int]
) -> Callable[[], Tensor | tuple[Tensor, Tensor]]:
    """A function from feature maps to logits, or to the loss if the head is in training mode."""
    device = head.classifier.weight.device
    feature_maps = [
        torch.randn(batch, channels, *(-(-side // stride) for side in size), device=device)
        for channels, stride in zip(MIT_B2_CHANNELS, MIT_STRIDES, strict=True)
    ]
    labels = torch.randint(NUM_LABELS, (batch, *size), device=device)
    if head.training:
        return lambda: head.loss(feature_maps, labels)
    return lambda: head(feature_maps)


def enlarged_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, h, w), (B, H, W) -> scalar cross-entropy of logits upsampled to image size."""
    return F.cross_entropy(F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels)


def maformer(is_small: bool, other: nn.Module) -> Pair:
    """MAFormer-S and another backbone of ours of about the same size."""
    ours = MaformerBackbone(MaformerConfig.preset("nano" if is_small else "small"))
    parameters = [sum(value.numel() for value in model.parameters()) / 1e6 for model in (ours, other)]
    work = {
        size: [macs(backbone_job(model.train(), 1, (size, size))) for model in (ours, other)]
        for size in (224, 512)
    }
    notes = [
        f"Only the backbones, from images to four feature maps; the loss is their mean. {parameters[0]:.1f} M parameters vs. "
        f"{parameters[1]:.1f} M.",
        *(
            f"Multiply-adds (MACs) of one {size}x{size} image, including attention products: {our.forward / 1e9:.2f} G vs. "
            f"{their.forward / 1e9:.2f} G, {our.forward / their.forward:.2f} times as many. Of a training step, including the "
            f"scores that fused attention recomputes in the backward pass: {our.training / 1e9:.1f} G vs. "
            f"{their.training / 1e9:.1f} G, {our.training / their.training:.2f} times as many. A time ratio below this factor "
            "means less time per multiply-add."
            for size, (our, their) in work.items()
        ),
    ]
    return Pair(ours, other, notes)


def backbone_job(model: nn.Module, batch: int, size: tuple[int, int]) -> Callable[[], Tensor | object]:
    """A function from images to feature maps, or to their mean if the model is in training mode."""
    pixels = torch.randn(batch, 3, *size, device=model.device)
    if model.training:
        return lambda: sum(feature_map.mean() for feature_map in model(pixels).feature_maps)
    return lambda: model(pixels)


def checkpointed(ours: PreTrainedModel) -> Pair:
    """A segmenter with gradient checkpointing, and a copy without."""
    theirs = deepcopy(ours)
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    notes = [
        "Ours is trained with `--gradient-checkpointing` and theirs without; model, weights and gradients are the same. The "
        "backward pass recomputes the blocks of the encoder, but not the decoder."
    ]
    return Pair(ours, theirs, notes)


def swin_tiny(is_small: bool) -> GlamSwinBackbone:
    preset = "nano" if is_small else "tiny"
    return GlamSwinBackbone(GlamSwinConfig.preset(preset, num_global_tokens=0, drop_path_rate=0.1))


def cswin_tiny(is_small: bool) -> CswinBackbone:
    return CswinBackbone(CswinConfig.preset("nano" if is_small else "tiny"))


WORKS = {
    "glam_swin": Work(
        "GLAM-Swin-T + UPerNet with 10 global tokens vs. transformers' plain Swin-T + UPerNet",
        lambda is_small: upernet_swin(is_small, num_global_tokens=10),
        image_job,
        is_about_glam=True,
    ),
    "swin": Work(
        "Swin-T + UPerNet: ours with 0 global tokens vs. transformers'",
        lambda is_small: upernet_swin(is_small, num_global_tokens=0),
        image_job,
        is_about_glam=True,
    ),
    "glam_swin_encoder": Work(
        "GLAM-Swin-T with 10 global tokens vs. transformers' plain Swin-T, encoders alone",
        lambda is_small: Pair(*(model.backbone for model in upernet_swin(is_small, 10)[:2]), notes=[]),
        backbone_job,
        modes=("inference",),
    ),
    "segdeformer": Work(
        "SegDeformer's head as in the authors' code: ours vs. a literal implementation",
        lambda is_small: segdeformer(is_small, neck="conv"),
        head_job,
    ),
    "segdeformer_linear": Work(
        "SegDeformer's head as in the paper: ours vs. a literal implementation",
        lambda is_small: segdeformer(is_small, neck="linear"),
        head_job,
    ),
    "segdeformer_efficient": Work(
        "SegDeformer's head with efficient attention vs. full attention", segdeformer_efficient, head_job
    ),
    **{
        f"segformer_r{ratio}": Work(
            f"SegDeformer with reduction_ratio={ratio} on MiT-B0 vs. transformers' SegFormer-B0",
            partial(segformer, reduction_ratio=ratio),
            image_job,
        )
        for ratio in (1, 2, 4, 8)
    },
    "maformer_swin": Work(
        "MAFormer-S vs. Swin-T (ours)",
        lambda is_small: maformer(is_small, swin_tiny(is_small)),
        backbone_job,
    ),
    "maformer_cswin": Work(
        "MAFormer-S vs. CSWin-T (ours)",
        lambda is_small: maformer(is_small, cswin_tiny(is_small)),
        backbone_job,
    ),
    "glam_checkpointing": Work(
        "GLAM-Swin-T + UPerNet with vs. without gradient checkpointing",
        lambda is_small: checkpointed(
            GlamSwinForSemanticSegmentation(
                GlamSwinConfig.preset("nano" if is_small else "tiny", num_labels=NUM_LABELS)
            )
        ),
        image_job,
        modes=("training step",),
    ),
    "maformer_checkpointing": Work(
        "MAFormer-S + Semantic FPN with vs. without gradient checkpointing",
        lambda is_small: checkpointed(
            MaformerForSemanticSegmentation(
                MaformerConfig.preset("nano" if is_small else "small", num_labels=NUM_LABELS)
            )
        ),
        image_job,
        modes=("training step",),
    ),
}
