"""Random values in random fields of every configuration: one sentence, or a model that can be built and runs."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from coco_shapes import FEW
from fuzzing.limits import Outcomes, check_message
from fuzzing.values import TEXTS, any_value, changed
from huggingface_hub.errors import StrictDataclassError
from tiny import LABELS, tiny_cswin, tiny_glam_swin, tiny_maformer, tiny_mit
from transformers import PreTrainedConfig, PreTrainedModel

from contextseg import (
    CswinConfig,
    CswinForSemanticSegmentation,
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    MaformerConfig,
    MaformerForSemanticSegmentation,
    MaskRcnnConfig,
    MaskRcnnForObjectDetection,
    SegDeformerConfig,
    SegDeformerForSemanticSegmentation,
)
from contextseg.configuration.field_rules import own_fields
from contextseg.training.option_texts import parse_overrides

SECONDS, MEGABYTES = 20, 1024
MOST_WEIGHTS, MOST_WEIGHTS_OF_DETECTOR = 3_000_000, 30_000_000  # of a model that is run
SIDE = 32  # pixels
LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "output_hidden_states", "dtype")
STAGE_FIELDS = ("out_features", "out_indices", "num_attention_heads")
WORDS = (
    "upernet",
    "semantic_fpn",
    "segdeformer",
    "unet",
    "nonlocal",
    "bilinear",
    "linear",
    "momentum",
    "table",
    "all",
)


def fields(tiny: Callable[[], PreTrainedModel], *names: str) -> dict[str, Any]:
    """These fields of a tiny model, and those that every one of our backbones has."""
    shared = ("depths", "num_heads", "drop_path_rate", "decoder_hidden_size", "auxiliary_hidden_size")
    return {name: getattr(tiny().config, name) for name in (*shared, *names)}


SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
DINO = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
TIMM = {"model_type": "timm_backbone", "backbone": "resnet10t", "out_indices": [1, 2]}
BACKBONES = [
    tiny_mit().to_diff_dict(),
    {**fields(tiny_glam_swin, "embed_dim", "window_size"), "model_type": "glam_swin"},
    {**SWIN, "out_features": ["stage1", "stage2"]},
    {**CONVNEXT, "out_features": ["stage1", "stage2"]},
    {**DINO, "image_size": SIDE, "out_indices": [1, 2]},
    TIMM,
]


FAMILIES = {
    GlamSwinConfig: (GlamSwinForSemanticSegmentation, fields(tiny_glam_swin, "embed_dim", "window_size")),
    MaformerConfig: (MaformerForSemanticSegmentation, fields(tiny_maformer, "hidden_sizes", "gld_grid_size")),
    CswinConfig: (CswinForSemanticSegmentation, fields(tiny_cswin, "hidden_sizes", "stripe_widths")),
    SegDeformerConfig: (
        SegDeformerForSemanticSegmentation,
        {"decoder_hidden_size": 8, "auxiliary_hidden_size": 8},
    ),
    MaskRcnnConfig: (MaskRcnnForObjectDetection, {"detector_options": FEW}),
}
# A detector takes longest, since its heads have 14 million weights.
ORDER = [*(GlamSwinConfig, MaformerConfig, CswinConfig, SegDeformerConfig) * 4, MaskRcnnConfig]


def options(rng: Random, config_class: type[PreTrainedConfig]) -> tuple[dict[str, Any], list[str]]:
    """Options of a small model, with one or two changed ones, and the names of these."""
    given = {"id2label": LABELS, **FAMILIES[config_class][1]}
    if config_class in (SegDeformerConfig, MaskRcnnConfig):
        given["backbone_config"] = rng.choice(BACKBONES)
    fields = own_fields(config_class)
    names = [*fields, *LABEL_FIELDS, *(STAGE_FIELDS if "depths" in fields else ())]
    chosen = rng.choices(names, k=rng.choice((1, 1, 1, 2)))
    for name in chosen:
        value = given.get(name, fields[name].default if name in fields else None)
        given[name] = rng.choice((*(near(value, rng),) * 4, changed(value, rng), any_value(rng)))
    if rng.random() < 0.05:
        given[chosen[0] + rng.choice(("s", "_", " ", "x"))] = given.pop(chosen[0])
    return given, chosen


def near(value: Any, rng: Random) -> Any:
    """A value of the same type that the field may have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list | tuple):
        return [near(entry, rng) for entry in value]
    if isinstance(value, int | float):
        return rng.choice((1, 2, 3, 4, 8) if isinstance(value, int) else (0.0, 0.1, 0.5, 2.0))
    return rng.choice(
        WORDS if isinstance(value, str) else (None, True, 1, 0.5, [1, 1], [1, 2, 3], (8, 16, 16))
    )


def as_texts(given: dict[str, Any], chosen: list[str], rng: Random) -> list[str]:
    """The changed options as the texts of --set, or texts that are none."""
    texts = [f"{name}={given.get(name)!r}" for name in chosen]
    return [
        rng.choice((text, text, text, text[:-1], text.replace("=", "", 1), rng.choice(TEXTS)))
        for text in texts
    ]


def case(number: int) -> str:
    rng = Random(f"configurations {number}")
    config_class = ORDER[number % len(ORDER)]
    given, chosen = options(rng, config_class)
    try:
        if rng.random() < 0.25:
            overrides = parse_overrides(as_texts(given, chosen, rng))
            given = {**{name: value for name, value in given.items() if name not in chosen}, **overrides}
        config = config_class(**given)
        config_class.from_dict(json.loads(config.to_json_string()))
        return run_model(FAMILIES[config_class][0], config)
    except (ValueError, StrictDataclassError) as error:
        check_message(str(error))
        return "refused"


def run_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str:
    """Builds a model, and runs it on one image with its loss; a large one is only described."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in model_class(config).parameters())
    is_detector = model_class is MaskRcnnForObjectDetection
    if weights > (MOST_WEIGHTS_OF_DETECTOR if is_detector else MOST_WEIGHTS):
        return "built without memory, since it is large"
    model, image = model_class(config).eval(), torch.rand(1, config.num_channels, SIDE, SIDE)
    with torch.no_grad():
        model(image) if is_detector else model(image, labels=torch.zeros(1, SIDE, SIDE, dtype=torch.long))
    return "run"


def run(numbers: range) -> None:
    Outcomes("configurations", SECONDS, MEGABYTES).run(case, numbers)


def test_20_random_configurations_run_or_are_refused():
    run(range(20))


@pytest.mark.slow
def test_500_random_configurations_run_or_are_refused():
    run(range(500))
