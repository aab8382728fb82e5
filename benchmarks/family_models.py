"""Every family's nano and smallest published size, beside the nearest network of another library.

A counterpart has the widths, depths and heads of ours, where the library offers them, and the same decoder if it has one.
Mask R-CNN is missing: its code is torchvision's own. To add a network, add an entry to `FAMILIES`.

Legend: B batch, C channels, K classes, H, W image axes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    Swinv2Backbone,
    Swinv2Config,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from contextseg import (
    CaswitConfig,
    CaswitForSemanticSegmentation,
    CswinConfig,
    CswinForSemanticSegmentation,
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    MaformerConfig,
    MaformerForSemanticSegmentation,
    NnFormerConfig,
    NnFormerForSemanticSegmentation,
    RelayConfig,
    SegDeformerConfig,
    SegDeformerForSemanticSegmentation,
)
from contextseg.modeling.blocks import BatchNorm2d
from contextseg.modeling.losses import segmentation_loss
from contextseg.modeling.modeling_relay_backbone import RelayBackbone

Builder = Callable[[], nn.Module]
NUM_LABELS, NUM_ORGANS = 150, 14  # of images, of volumes
VOLUME_LOSS = "cross_entropy+foreground_dice"
# Packages of libraries that contextseg does not require, as they are imported.
LIBRARIES = {"smp": ("segmentation_models_pytorch",), "MONAI": ("monai", "einops")}


@dataclass(frozen=True)
class Family:
    """One model of ours, and those of others beside it.

    Args:
        build: Builds our model.
        others: Builders of the others, by names that begin with their library.
        inputs: Size, batch and device -> keyword arguments of the models.
        sizes: Sizes of images (H, W) or volumes (slices, rows, columns).
        stride: Pixels or voxels of a token of the first stage, for tokens per second.
        crops: Images of one sample; 2 for a crop and its context.
    """

    build: Builder
    others: Mapping[str, Builder]
    inputs: "Callable[[tuple[int, ...], int, torch.device], dict[str, Tensor]]"
    sizes: tuple[tuple[int, ...], ...] = ((256, 256), (512, 512))
    stride: tuple[int, ...] = (4, 4)
    crops: int = 1

    def available(self) -> dict[str, Builder]:
        """The others whose library is installed."""
        return {name: build for name, build in self.others.items() if is_installed(library_of(name))}


def library_of(name: str) -> str:
    return name.split()[0]


def is_installed(library: str) -> bool:
    return all(find_spec(package) is not None for package in LIBRARIES.get(library, (library,)))


class OnLogits(nn.Module):
    """A network that returns logits at image size, called as models of transformers are."""

    def __init__(self, network: nn.Module, label_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.label_loss = network, label_loss

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SemanticSegmenterOutput:
        """Images (B, C, H, W), labels (B, H, W) -> loss, logits (B, K, H, W)."""
        logits = self.network(pixel_values)
        return SemanticSegmenterOutput(None if labels is None else self.label_loss(logits, labels), logits)


class OnBothCrops(nn.Module):
    """A model for one image, which takes a crop and its context as a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor,
        labels: Tensor | None = None,
        context_labels: Tensor | None = None,
    ) -> SemanticSegmenterOutput:
        """Twice (B, C, H, W), twice (B, H, W) -> loss, logits (2B, K, H, W)."""
        both = None if labels is None else torch.cat([labels, context_labels])
        return self.model(pixel_values=torch.cat([pixel_values, context_values]), labels=both)


class OnFeatureMaps(nn.Module):
    """An encoder of a crop and its context without a decoder; the loss is the mean of all feature maps."""

    def __init__(self, encoder: nn.Module, takes_pairs: bool) -> None:
        super().__init__()
        self.encoder, self.takes_pairs = encoder, takes_pairs

    def forward(
        self, pixel_values: Tensor, context_values: Tensor, **_labels: Tensor
    ) -> SemanticSegmenterOutput:
        """Twice (B, C, H, W) -> loss."""
        if self.takes_pairs:
            outputs = self.encoder(pixel_values, context_values)
        else:
            outputs = self.encoder(torch.cat([pixel_values, context_values]))
        return SemanticSegmenterOutput(sum(feature_map.mean() for feature_map in outputs.feature_maps))


def image_inputs(size: tuple[int, ...], batch: int, device: torch.device) -> dict[str, Tensor]:
    """Random images (B, 3, H, W) and labels (B, H, W)."""
    labels = torch.randint(NUM_LABELS, (batch, *size), device=device)
    return {"pixel_values": torch.randn(batch, 3, *size, device=device), "labels": labels}


def pair_inputs(size: tuple[int, ...], batch: int, device: torch.device) -> dict[str, Tensor]:
    """Random crops and contexts, each with labels."""
    crops, contexts = (image_inputs(size, batch, device) for _ in range(2))
    return {**crops, "context_values": contexts["pixel_values"], "context_labels": contexts["labels"]}


def volume_inputs(size: tuple[int, ...], batch: int, device: torch.device) -> dict[str, Tensor]:
    """Random volumes (B, 1, slices, rows, columns) and their labels."""
    labels = torch.randint(NUM_ORGANS, (batch, *size), device=device)
    return {"pixel_values": torch.randn(batch, 1, *size, device=device), "labels": labels}


def swin_upernet(config: Any, window: int) -> nn.Module:
    """transformers' Swin of the widths, depths and heads of a configuration of ours, under UPerNet."""
    encoder = SwinConfig(
        embed_dim=config.hidden_sizes[0],
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=window,
        drop_path_rate=config.drop_path_rate,
        out_indices=[1, 2, 3, 4],
    )
    return trains_on_one(
        UperNetForSemanticSegmentation(
            UperNetConfig(
                backbone_config=encoder,
                num_labels=NUM_LABELS,
                hidden_size=config.decoder_hidden_size,
                auxiliary_in_channels=config.hidden_sizes[2],
                auxiliary_channels=config.auxiliary_hidden_size,
            )
        )
    )


def trains_on_one(model: nn.Module) -> nn.Module:
    """The model, with batch norms that can train on a single value per channel, as UPerNet has for a batch of one."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, BatchNorm2d(child.num_features, child.eps, child.momentum))
    return model


def segformer(config: Any, **sizes: Any) -> nn.Module:
    """transformers' SegFormer with these sizes of the encoder and the width of our decoder."""
    width = {"decoder_hidden_size": config.decoder_hidden_size, "num_labels": NUM_LABELS}
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, **width))


def segformer_of_maformer(config: MaformerConfig) -> nn.Module:
    return segformer(
        config,
        hidden_sizes=list(config.hidden_sizes),
        depths=list(config.depths),
        num_attention_heads=list(config.num_heads),
        drop_path_rate=config.drop_path_rate,
    )


def segformer_of_segdeformer(config: SegDeformerConfig) -> nn.Module:
    encoder = config.backbone_config
    names = ("hidden_sizes", "depths", "num_attention_heads", "drop_path_rate")
    return segformer(config, **{name: getattr(encoder, name) for name in names})


def swinv2_encoder(config: RelayConfig) -> nn.Module:
    sizes = {
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
    }
    options = {"window_size": config.window_size, "drop_path_rate": config.drop_path_rate}
    last = f"stage{len(config.depths)}"
    encoder = Swinv2Backbone(
        Swinv2Config(**sizes, **options, image_size=config.crop_size, out_features=[last])
    )
    return OnFeatureMaps(encoder, takes_pairs=False)


def smp_network(kind: str, encoder: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    build = getattr(segmentation_models_pytorch, kind)
    network = build(encoder, encoder_weights=None, classes=NUM_LABELS, **options)
    return trains_on_one(OnLogits(network, F.cross_entropy))


def swin_unetr(width: int) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    network = SwinUNETR(1, NUM_ORGANS, feature_size=width, spatial_dims=3)
    return OnLogits(network, partial(segmentation_loss, terms=VOLUME_LOSS))


def glam_swin(preset: str, **others: Builder) -> Family:
    config = GlamSwinConfig.preset(preset, num_labels=NUM_LABELS)
    swin = {"transformers Swin + UPerNet": lambda: swin_upernet(config, config.window_size)}
    return Family(lambda: GlamSwinForSemanticSegmentation(config), {**swin, **others}, image_inputs)


def cswin(preset: str) -> Family:
    config = CswinConfig.preset(preset, num_labels=NUM_LABELS)
    swin = {"transformers Swin + UPerNet": lambda: swin_upernet(config, window=7)}
    return Family(lambda: CswinForSemanticSegmentation(config), swin, image_inputs)


def maformer(preset: str, **others: Builder) -> Family:
    config = MaformerConfig.preset(preset, num_labels=NUM_LABELS)
    mit = {"transformers SegFormer": lambda: segformer_of_maformer(config)}
    return Family(lambda: MaformerForSemanticSegmentation(config), {**mit, **others}, image_inputs)


def segdeformer(preset: str, **others: Builder) -> Family:
    config = SegDeformerConfig.preset(preset, num_labels=NUM_LABELS)
    mit = {"transformers SegFormer": lambda: segformer_of_segdeformer(config)}
    return Family(lambda: SegDeformerForSemanticSegmentation(config), {**mit, **others}, image_inputs)


def caswit(preset: str, **options: Any) -> Family:
    config = CaswitConfig.preset(preset, num_labels=NUM_LABELS)
    swin = {"transformers Swin + UPerNet": lambda: OnBothCrops(swin_upernet(config, config.window_size))}
    return Family(lambda: CaswitForSemanticSegmentation(config), swin, pair_inputs, crops=2, **options)


def relay(preset: str, **options: Any) -> Family:
    config = RelayConfig.preset(preset)
    swin = {"transformers Swin V2": lambda: swinv2_encoder(config)}
    ours = partial(OnFeatureMaps, takes_pairs=True)
    return Family(lambda: ours(RelayBackbone(config)), swin, pair_inputs, crops=2, **options)


def nnformer(preset: str, width: int, size: tuple[int, ...], **overrides: Any) -> Family:
    options = {"num_labels": NUM_ORGANS, "loss": VOLUME_LOSS, **overrides}
    config = NnFormerConfig.preset(preset, **options)
    others = {f"MONAI SwinUNETR of width {width}": lambda: swin_unetr(width)}
    ours = partial(NnFormerForSemanticSegmentation, config)
    return Family(ours, others, volume_inputs, sizes=(size,), stride=config.patch_size)


GLAM = {"variant": "2021", "num_global_tokens": 1}
SMP_UPERNET = partial(
    smp_network, "UPerNet", "tu-swin_tiny_patch4_window7_224", decoder_channels=512, strict_img_size=False
)
FAMILIES: dict[str, Family] = {
    "glam_swin nano": glam_swin("nano"),
    "glam_swin tiny": glam_swin("tiny", **{"smp Swin-T + UPerNet": SMP_UPERNET}),
    "cswin nano": cswin("nano"),
    "cswin tiny": cswin("tiny"),
    "maformer nano": maformer("nano"),
    "maformer small": maformer("small", **{"smp MiT-B2 + FPN": partial(smp_network, "FPN", "mit_b2")}),
    "segdeformer nano": segdeformer("nano"),
    "segdeformer mit_b0": segdeformer(
        "mit_b0", **{"smp SegFormer-B0": partial(smp_network, "Segformer", "mit_b0")}
    ),
    "caswit nano": caswit("nano"),
    "caswit tiny": caswit("tiny", sizes=((256, 256),)),
    "relay nano": relay("nano"),
    "relay swinv2_small": relay("swinv2_small", sizes=((256, 256),)),
    "nnformer nano": nnformer("nano", 24, (64, 64, 64)),
    "nnformer synapse": nnformer("synapse", 48, (32, 64, 64)),
    "glam_nnformer nano": nnformer("nano", 24, (64, 64, 64), **GLAM),
    "glam_nnformer synapse": nnformer("synapse", 48, (32, 64, 64), **GLAM),
}
