"""Random values in random fields of every configuration: one sentence, or a model that can be built and runs."""

from collections.abc import Callable
from random import Random
from typing import Any

from coco_shapes import FEW
from tiny import tiny_cswin, tiny_glam_swin, tiny_maformer, tiny_mit, tiny_segdeformer
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

SECONDS, MEGABYTES = 20, 1024
MOST_WEIGHTS = 3_000_000  # of a model that is run; larger ones are only described, on the device "meta"
SIDE = 32  # pixels
LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "output_hidden_states", "dtype")
STAGE_FIELDS = ("out_features", "out_indices", "num_attention_heads")
GLAM_SWIN = tiny_glam_swin().config
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
    {**tiny_mit().to_diff_dict(), "model_type": "segformer"},
    {**GLAM_SWIN.to_diff_dict(), "model_type": "glam_swin"},
    {**SWIN, "out_features": ["stage1", "stage2"]},
    {**CONVNEXT, "out_features": ["stage1", "stage2"]},
    {**DINO, "image_size": SIDE, "out_indices": [1, 2]},
    TIMM,
]


def fields_of(model: PreTrainedModel, *names: str) -> dict[str, Any]:
    return {name: getattr(model.config, name) for name in names}


HEADS = ("decoder_hidden_size", "auxiliary_hidden_size", "drop_path_rate", "depths", "num_heads")
FAMILIES: list[tuple[type[PreTrainedConfig], type[PreTrainedModel], Callable[[Random], dict[str, Any]]]] = [
    (
        GlamSwinConfig,
        GlamSwinForSemanticSegmentation,
        lambda _: fields_of(tiny_glam_swin(), *HEADS, "embed_dim", "window_size", "num_global_tokens"),
    ),
    (
        MaformerConfig,
        MaformerForSemanticSegmentation,
        lambda _: fields_of(tiny_maformer(), *HEADS, "hidden_sizes", "gld_grid_size"),
    ),
    (
        CswinConfig,
        CswinForSemanticSegmentation,
        lambda _: fields_of(tiny_cswin(), *HEADS, "hidden_sizes", "stripe_widths"),
    ),
    (
        SegDeformerConfig,
        SegDeformerForSemanticSegmentation,
        lambda rng: {
            **fields_of(tiny_segdeformer(), "decoder_hidden_size", "auxiliary_hidden_size"),
            "backbone_config": dict(rng.choice(BACKBONES)),
        },
    ),
    (
        MaskRcnnConfig,
        MaskRcnnForObjectDetection,
        lambda rng: {"backbone_config": dict(rng.choice(BACKBONES)), "detector_options": dict(FEW)},
    ),
]
