"""Tries one encoder under SegDeformer's decoder and UPerNet: builds, runs, trains, saves and loads it."""

import tempfile
from dataclasses import dataclass
from math import ceil

import torch
from transformers import PreTrainedConfig

from ..configuration.configuration_segdeformer import SegDeformerConfig
from ..modeling.modeling_segdeformer import SegDeformerForSemanticSegmentation
from .encoder_configs import timm_configs, transformers_config

LABELS = {0: "road", 1: "sky", 2: "tree"}
SIZES = ((64, 96), (77, 45))  # the second is not a multiple of any patch
DECODERS = ("segdeformer", "upernet")
WORKS, ONE_SIZE, REFUSED, FAILS = "works", "one size only", "refused", "fails"


@dataclass(frozen=True)
class Verdict:
    """What became of an encoder.

    Attributes:
        result: `WORKS`, `ONE_SIZE`, `REFUSED` with a reason that tells users what to do, or `FAILS`.
        reason: One sentence; empty if the encoder works without restriction.
        strides: Strides of the feature maps used.
    """

    result: str
    reason: str = ""
    strides: tuple[int, ...] = ()


def try_kind(library: str, name: str) -> tuple[str, Verdict]:
    """Tries a model type of transformers or a family of timm; returns the name of the model and what became of it."""
    if library == "transformers":
        return name, answer_of(transformers_config(name))
    for config in timm_configs(name):  # small ones first
        verdict = answer_of(config)
        if verdict.result in (WORKS, ONE_SIZE):
            break
    return config.backbone, verdict


def answer_of(config: PreTrainedConfig) -> Verdict:
    """What became of an encoder, an error of any kind included."""
    try:
        return try_encoder(config)
    except Exception as error:
        return Verdict(FAILS, f"{type(error).__name__}: {sentence(error)}")


def try_encoder(config: PreTrainedConfig) -> Verdict:
    """Builds the encoder under each decoder and checks what the page promises."""
    try:
        models = [segmenter(config, decoder) for decoder in DECODERS]
    except (ImportError, ValueError) as error:
        return Verdict(REFUSED, sentence(error))
    facts = models[0].backbone.facts
    sizes = [facts.fixed_size, tuple(side - 19 for side in facts.fixed_size)] if facts.fixed_size else SIZES
    for model in models:
        for size in sizes:
            runs(model, size)
        images = trains(model, sizes[1])
    trains(saved_and_loaded(models[0], sizes[1]), sizes[1])
    if facts.fixed_size is None:
        remark = "Trains on two images or more: it has batch norm on pooled features." if images > 1 else ""
        return Verdict(WORKS, remark, facts.strides)
    height, width = facts.fixed_size
    return Verdict(
        ONE_SIZE, f"Images are padded to {height}x{width}; larger ones are refused.", facts.strides
    )


def segmenter(config: PreTrainedConfig, decoder: str) -> SegDeformerForSemanticSegmentation:
    torch.manual_seed(0)
    options = {"decoder_hidden_size": 8, "id2label": LABELS, "decoder": decoder}
    return SegDeformerForSemanticSegmentation(SegDeformerConfig(backbone_config=config, **options))


def runs(model: SegDeformerForSemanticSegmentation, size: tuple[int, int]) -> None:
    """The logits have the stated stride and are finite."""
    with torch.no_grad():
        logits = model.eval()(torch.randn(1, 3, *size)).logits
    expected = (1, len(LABELS), *(ceil(side / model.config.logits_stride) for side in size))
    check(tuple(logits.shape) == expected, f"logits of {size} are {tuple(logits.shape)}, not {expected}")
    check(bool(logits.isfinite().all()), f"logits of {size} are not finite")


def trains(model: SegDeformerForSemanticSegmentation, size: tuple[int, int]) -> int:
    """A training step gives every parameter a gradient, as DistributedDataParallel needs; returns the images it needs."""
    images = 1
    try:
        model.train()(torch.randn(1, 3, *size))
    except ValueError as error:
        check("Expected more than 1 value per channel" in str(error), sentence(error))
        images = 2
    labels = torch.randint(0, len(LABELS), (images, *size))
    model(torch.randn(images, 3, *size), labels=labels).loss.backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    check(not without, f"no gradient for {', '.join(without[:3])}")
    model.zero_grad()
    return images


def saved_and_loaded(
    model: SegDeformerForSemanticSegmentation, size: tuple[int, int]
) -> SegDeformerForSemanticSegmentation:
    """The model after saving and loading: the same tensors, buffers included, and the same logits."""
    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, *size)
    with torch.no_grad():
        same = torch.allclose(model(pixels).logits, loaded(pixels).logits, atol=1e-6)
    check(same, "logits differ after loading")
    state, other = (dict([*one.named_parameters(), *one.named_buffers()]) for one in (model, loaded))
    changed = [name for name in state if name not in other or not torch.equal(state[name], other[name])]
    check(not changed and len(state) == len(other), f"loaded tensors differ: {', '.join(changed[:3])}")
    return loaded


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def sentence(error: Exception) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())


__all__ = ["FAILS", "ONE_SIZE", "REFUSED", "WORKS", "Verdict", "try_encoder", "try_kind"]
