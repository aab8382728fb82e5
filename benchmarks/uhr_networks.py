"""Networks with and without a context branch, trained and scored on pairs of crops.

Legend: B batch, N crops, K classes, S side of a crop in pixels, C channels.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration.configuration_caswit import CaswitConfig
from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.configuration_relay import RelayConfig
from ..modeling.modeling_caswit import CaswitForSemanticSegmentation
from ..modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation
from ..modeling.modeling_relay import RelayForSemanticSegmentation
from ..processing.metrics import ConfusionMatrix
from ..training.optim import learning_rate_factor, parameter_groups, set_learning_rate
from .uhr_crops import CROP, IGNORE_INDEX, Pair, Picture

WARMUP_STEPS, WEIGHT_DECAY, CLIP_NORM = 100, 0.01, 1.0
SIZES = {
    "depths": (1, 2, 2),
    "embed_dim": 24,
    "num_heads": (1, 2, 4),
    "window_size": 4,
    "drop_path_rate": 0.0,
    "crop_size": CROP,
    "decoder": "semantic_fpn",
    "decoder_hidden_size": 24,
    "use_auxiliary_head": False,
    "initializer_range": 0.15,
}


class Network(NamedTuple):
    """One row of the tables: a model, the ratio of its context, and how its logits are made from a pair."""

    title: str
    build: Callable[..., nn.Module]  # number of classes, their weights in the loss -> model
    ratio: int = 4
    late_fusion: bool = False
    local_only: bool = False

    def logits(self, model: nn.Module, local: Tensor, context: Tensor) -> Tensor:
        """Two of (B, C, S, S) -> logits (B, K, h, w) of the local crops."""
        if self.late_fusion:
            return fused_late(model, local, context)
        if self.local_only:
            return model(pixel_values=local).logits
        return model(pixel_values=local, context_values=context).logits

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """The loss on pairs (B, ...): that of the model, or for late fusion the cross-entropy."""
        if self.late_fusion:
            return model.label_loss(fused_late(model, batch.local, batch.context), batch.labels)
        if self.local_only:
            return model(pixel_values=batch.local, labels=batch.labels).loss
        wide = {"context_labels": batch.context_labels} if model.uses_context_labels else {}
        return model(pixel_values=batch.local, context_values=batch.context, labels=batch.labels, **wide).loss


def fused_late(model: nn.Module, local: Tensor, context: Tensor) -> Tensor:
    """The mean of the logits of both crops, by the same weights without relay tokens, where they overlap."""
    scores, _ = model.score_pairs(local, context, has_labels=True)
    side, ratio = scores.context.shape[-1], model.config.context_ratio
    inner = side // ratio
    first = (side - inner) // 2
    center = scores.context[..., first : first + inner, first : first + inner]
    size = scores.local.shape[-2:]
    return (scores.local + F.interpolate(center, size=size, mode="bilinear", align_corners=False)) / 2


VIT = {
    "encoder_type": "vit",
    "patch_size": 8,
    "embed_dim": 64,
    "depths": (4,),
    "num_heads": (4,),
    "decoder": "one_step",
    "layer_norm_eps": 1e-6,
}


def relay(num_tokens: int, **options: object) -> Callable[..., nn.Module]:
    def build(num_labels: int, class_weights: list[float] | None = None) -> nn.Module:
        config = RelayConfig(
            **{**SIZES, **VIT, **options},
            num_relay_tokens=num_tokens,
            num_labels=num_labels,
            class_weights=class_weights,
        )
        return RelayForSemanticSegmentation(config)

    return build


def caswit(ratio: int) -> Callable[..., nn.Module]:
    def build(num_labels: int, class_weights: list[float] | None = None) -> nn.Module:
        config = CaswitConfig(
            **SIZES, context_ratio=ratio, num_labels=num_labels, class_weights=class_weights
        )
        return CaswitForSemanticSegmentation(config)

    return build


def swin(num_labels: int, class_weights: list[float] | None = None) -> nn.Module:
    """The Swin of CASWiT, with its decoder, without context."""
    sizes = {name: value for name, value in SIZES.items() if name != "crop_size"}
    config = GlamSwinConfig(**sizes, num_global_tokens=0, num_labels=num_labels, class_weights=class_weights)
    return GlamSwinForSemanticSegmentation(config)


ALONE = {"global_loss_weight": 0.0, "consistency_weight": 0.0}
COMPARED = {
    "local": Network("ViT, local crop alone", relay(0, **ALONE)),
    "late": Network("ViT, late fusion", relay(0, **ALONE), late_fusion=True),
    "relay4": Network("relay, 4 tokens, sequential", relay(4)),
    "swin": Network("Swin, local crop alone", swin, local_only=True),
    "caswit2": Network("CASWiT, ratio 2", caswit(2), ratio=2),
    "caswit4": Network("CASWiT, ratio 4", caswit(4)),
}
SWIN = {name: SIZES[name] for name in VIT.keys() & SIZES.keys()} | {"encoder_type": "swinv2", "patch_size": 4}
NETWORKS = {
    **COMPARED,
    "relay4_swinv2": Network("relay, 4 tokens, sequential, SwinV2", relay(4, **SWIN)),
    **{
        f"relay{tokens}{'' if rule == 'sequential' else '_mean'}": Network(
            f"relay, {tokens} token{'s' if tokens > 1 else ''}, {rule}", relay(tokens, relay_update=rule)
        )
        for rule in ("sequential", "mean")
        for tokens in (1, 2, 4, 8)
    },
}


@dataclass(frozen=True)
class Training:
    """Settings that all networks of a comparison share."""

    steps: int
    batch_size: int = 8
    learning_rate: float = 1e-3


def train(
    network: Network,
    classes: tuple[int, list[float] | None],
    draw: Callable[[np.random.Generator, int], Pair],
    settings: Training,
    seed: int,
) -> tuple[nn.Module, float]:
    """Trains with AdamW, warm-up and polynomial decay, on pairs that `draw` takes at random.

    Returns the model in evaluation mode, and the processor time in seconds.
    """
    torch.manual_seed(seed)
    model = network.build(*classes).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, learning_rate=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    )
    rng, started = np.random.default_rng(seed), time.process_time()
    for step in range(settings.steps):
        factor = learning_rate_factor(step, steps=settings.steps, warmup_steps=WARMUP_STEPS, schedule="poly")
        set_learning_rate(optimizer, factor)
        batch = stacked([flipped(draw(rng, network.ratio), rng) for _ in range(settings.batch_size)])
        network.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), time.process_time() - started


def stacked(pairs: Sequence[Pair]) -> Pair:
    """Pairs -> one pair with a batch axis."""
    return Pair(*map(torch.stack, zip(*pairs, strict=True)))


def flipped(pair: Pair, rng: np.random.Generator) -> Pair:
    """A random mirror image of both crops."""
    return Pair(*(part.flip(-1) for part in pair)) if rng.random() < 0.5 else pair


@torch.inference_mode()
def predicted(network: Network, model: nn.Module, pairs: Sequence[Pair]) -> Tensor:
    """N pairs -> class ids (N, S, S)."""
    masks = []
    for start in range(0, len(pairs), 16):
        batch = stacked(pairs[start : start + 16])
        logits = network.logits(model, batch.local, batch.context)
        resized = F.interpolate(logits, size=batch.labels.shape[-2:], mode="bilinear", align_corners=False)
        masks.append(resized.argmax(dim=1))
    return torch.cat(masks)


def score_tiles(network: Network, model: nn.Module, pictures: Sequence[Picture], num_classes: int) -> dict:
    """Scores whole pictures by tiles without overlap, each with its context: the confusion matrix's scores."""
    confusion = ConfusionMatrix(num_classes, IGNORE_INDEX)
    for picture in pictures:
        height, width = picture.labels.shape
        corners = [(top, left) for top in range(0, height, CROP) for left in range(0, width, CROP)]
        for start in range(0, len(corners), 64):
            pairs = [picture.pair(*corner, network.ratio) for corner in corners[start : start + 64]]
            confusion.update(predicted(network, model, pairs), stacked(pairs).labels)
    return confusion.compute()
