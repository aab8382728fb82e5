"""What contextseg-benchmark compares: for each comparison, two models that do the same work.

A further comparison is one entry of `WORKS`.

Legend: B batch, C channels, K classes, h, w the sides of a feature map, H, W those of the image.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
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
)
from contextseg.modeling.blocks import BatchNorm2d
from contextseg.modeling.decoder_segdeformer import ContextMining, SegDeformerDecoder
from contextseg.modeling.losses import segmentation_loss
from contextseg.processing.logits_to_masks import upsampled_argmax

from .measuring import multiply_adds
from .reference_segdeformer import StraightforwardSegDeformer

NUM_LABELS = 150
MIT_STRIDES = (4, 8, 16, 32)
MIT_B2_CHANNELS = (64, 128, 320, 512)
DECODER_WIDTH = 256
MID_LOSS_WEIGHT = 0.4  # the paper's alpha


class Pair(NamedTuple):
    """Two models for the same job, and what a reader must know about them."""

    ours: nn.Module
    theirs: nn.Module
    notes: list[str]


@dataclass(frozen=True)
class Work:
    """One comparison.

    build: makes its pair, very small when its argument is true.
    job: from a model, a batch size and an image size (H, W) makes what is measured; with a model in training mode it
        returns the loss.
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
        """Maps (B, C_i, h_i, w_i), fine to coarse -> scores and mid-level scores, both (B, K, h, w)."""
        decoded = self.decoder(feature_maps)
        return self.classifier(decoded.feature_map), decoded.mid_logits

    def loss(self, feature_maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Maps (B, C_i, h_i, w_i), labels (B, H, W) -> ()."""
        logits, mid_logits = self(feature_maps)
        return self.label_loss(logits, labels) + MID_LOSS_WEIGHT * self.label_loss(mid_logits, labels)


def upernet_swin(is_small: bool, num_global_tokens: int) -> Pair:
    """GLAM-Swin with UPerNet and transformers' Swin-T with UPerNet, with the same weights where both have them."""
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
        "Weights: the same in both, except for what only GLAM has (global tokens and their attention). "
        "150 classes, auxiliary head, stochastic depth 0.3.",
        f"Attention: ours `{ours.config._attn_implementation}`, transformers "
        f"`{theirs.backbone.config._attn_implementation}` (each one's default).",
        "transformers refuses a training batch of one (a batch norm that sees one value), so that one norm is ours.",
    ]
    return Pair(ours, theirs, notes)


def image_job(model: nn.Module, batch: int, size: tuple[int, int]) -> Callable[[], Tensor | list[Tensor]]:
    """Images to masks, or to the loss."""
    pixels = torch.randn(batch, 3, *size, device=model.device)
    labels = torch.randint(NUM_LABELS, (batch, *size), device=model.device)
    if model.training:
        return lambda: model(pixel_values=pixels, labels=labels).loss
    return lambda: masks(model(pixel_values=pixels).logits, size)


def masks(logits: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """(B, K, h, w) -> B masks (H, W). transformers' models enlarge the logits themselves, ours leave that to this step."""
    if logits.shape[-2:] == size:
        return list(logits.argmax(dim=1))
    return [upsampled_argmax(image_logits[None], size)[0] for image_logits in logits]


def segdeformer_head(is_small: bool, neck: str = "conv", reduction_ratio: int = 1) -> SegmentationHead:
    """The decoder of SegDeformer-B2 for ADE20K, and its classifier."""
    width = 16 if is_small else DECODER_WIDTH
    config = PreTrainedConfig(attn_implementation="sdpa")
    mining = ContextMining(neck, reduction_ratio)
    decoder = SegDeformerDecoder(config, MIT_B2_CHANNELS, width, NUM_LABELS, mining, dropout=0.0)
    return SegmentationHead(decoder, width)


def segdeformer(is_small: bool, neck: str) -> Pair:
    """Our head beside its equations one by one, with the same weights."""
    ours = segdeformer_head(is_small, neck)
    width = ours.classifier.in_channels
    decoder = StraightforwardSegDeformer(MIT_B2_CHANNELS, width, NUM_LABELS, is_normed=neck != "linear")
    theirs = SegmentationHead(decoder, width, enlarged_cross_entropy)
    theirs.load_state_dict(ours.state_dict())
    notes = [
        "The head alone, on random feature maps of MiT-B2's shapes: decoder of width 256, classifier for 150 classes. "
        "Inference ends with scores at a quarter of the image's size; training adds 0.4 times the loss of the mid-level scores.",
        "Theirs: levels concatenated at the finest size, a product for each projection, attention that holds its matrix, "
        "scores enlarged to the image's size before the loss. The same weights and, up to rounding, results.",
        "A training step gains less than inference: attention that keeps no matrix makes the scores again in the backward pass, "
        "seven products for six.",
    ]
    return Pair(ours, theirs, notes)


def segdeformer_efficient(is_small: bool) -> Pair:
    """Efficient attention (section 3.4 of the paper) beside the whole one."""
    notes = [
        "Both are ours, for the same job as above: attention whose keys and values stand for 4 x 4 positions each "
        "(`reduction_ratio=4`), beside attention to every position. That is another model, with other results."
    ]
    return Pair(segdeformer_head(is_small, reduction_ratio=4), segdeformer_head(is_small), notes)


def head_job(
    head: SegmentationHead, batch: int, size: tuple[int, int]
) -> Callable[[], Tensor | tuple[Tensor, Tensor]]:
    """Feature maps to scores, or to the loss."""
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
    """(B, K, h, w), (B, H, W) -> ()."""
    return F.cross_entropy(F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels)


def maformer(is_small: bool, other: nn.Module) -> Pair:
    """MAFormer-S beside another backbone of ours, of about its size."""
    ours = MaformerBackbone(MaformerConfig.preset("nano" if is_small else "small"))
    parameters = [sum(value.numel() for value in model.parameters()) / 1e6 for model in (ours, other)]
    work = {size: [multiply_adds(model, size) for model in (ours, other)] for size in (224, 512)}
    notes = [
        f"Backbones alone, from images to four feature maps; the loss is their mean. {parameters[0]:.1f} M parameters beside "
        f"{parameters[1]:.1f} M.",
        *(
            f"Multiply-adds of one {size}x{size} image, attention products included: {our.forward / 1e9:.2f} G beside "
            f"{their.forward / 1e9:.2f} G, {our.forward / their.forward:.2f} times as many; of a training step, with the "
            f"scores that fused attention makes again in the backward pass, {our.training / 1e9:.1f} G beside "
            f"{their.training / 1e9:.1f} G, {our.training / their.training:.2f} times as many. A time ratio below that is "
            "faster per multiply-add."
            for size, (our, their) in work.items()
        ),
    ]
    return Pair(ours, other, notes)


def backbone_job(model: nn.Module, batch: int, size: tuple[int, int]) -> Callable[[], Tensor | object]:
    """Images to feature maps, or to their mean."""
    pixels = torch.randn(batch, 3, *size, device=model.device)
    if model.training:
        return lambda: sum(feature_map.mean() for feature_map in model(pixels).feature_maps)
    return lambda: model(pixels)


def checkpointed(ours: PreTrainedModel) -> Pair:
    """A segmenter trained with gradient checkpointing, beside itself trained without."""
    theirs = deepcopy(ours)
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    notes = [
        "Ours is with `--gradient-checkpointing`, theirs without: the same model, weights and gradients. The blocks of the "
        "encoder are computed again in the backward pass; the decoder is not."
    ]
    return Pair(ours, theirs, notes)


def swin_tiny(is_small: bool) -> GlamSwinBackbone:
    preset = "nano" if is_small else "tiny"
    return GlamSwinBackbone(GlamSwinConfig.preset(preset, num_global_tokens=0, drop_path_rate=0.1))


def cswin_tiny(is_small: bool) -> CswinBackbone:
    return CswinBackbone(CswinConfig.preset("nano" if is_small else "tiny"))


WORKS = {
    "glam_swin": Work(
        "GLAM-Swin-T + UPerNet with 10 global tokens, beside transformers' plain Swin-T + UPerNet",
        lambda is_small: upernet_swin(is_small, num_global_tokens=10),
        image_job,
        is_about_glam=True,
    ),
    "swin": Work(
        "Swin-T + UPerNet: ours with 0 global tokens, beside transformers'",
        lambda is_small: upernet_swin(is_small, num_global_tokens=0),
        image_job,
        is_about_glam=True,
    ),
    "segdeformer": Work(
        "SegDeformer's head as the authors' code has it: ours, beside its equations one by one",
        lambda is_small: segdeformer(is_small, neck="conv"),
        head_job,
    ),
    "segdeformer_linear": Work(
        "SegDeformer's head as the paper has it: ours, beside its equations one by one",
        lambda is_small: segdeformer(is_small, neck="linear"),
        head_job,
    ),
    "segdeformer_efficient": Work(
        "SegDeformer's head with efficient attention, beside whole attention", segdeformer_efficient, head_job
    ),
    "maformer_swin": Work(
        "MAFormer-S, beside Swin-T (ours)",
        lambda is_small: maformer(is_small, swin_tiny(is_small)),
        backbone_job,
    ),
    "maformer_cswin": Work(
        "MAFormer-S, beside CSWin-T (ours)",
        lambda is_small: maformer(is_small, cswin_tiny(is_small)),
        backbone_job,
    ),
    "glam_checkpointing": Work(
        "GLAM-Swin-T + UPerNet with gradient checkpointing, beside without",
        lambda is_small: checkpointed(
            GlamSwinForSemanticSegmentation(
                GlamSwinConfig.preset("nano" if is_small else "tiny", num_labels=NUM_LABELS)
            )
        ),
        image_job,
        modes=("training step",),
    ),
    "maformer_checkpointing": Work(
        "MAFormer-S + Semantic FPN with gradient checkpointing, beside without",
        lambda is_small: checkpointed(
            MaformerForSemanticSegmentation(
                MaformerConfig.preset("nano" if is_small else "small", num_labels=NUM_LABELS)
            )
        ),
        image_job,
        modes=("training step",),
    ),
}
