"""Weights of transformers' SegFormer for SegDeformer: the encoder, and the all-MLP decoder as its neck.

transformers itself reads the checkpoint, the layout of `nvidia/segformer-*` and newer ones; here its tensors change
places. What SegFormer does not have, the context mining, keeps its fresh initialisation.
"""

import logging
import os
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from .label_rows import rows_of_equal_names, with_kept_rows

logger = logging.getLogger(__name__)

# Fields of a SegFormer's configuration that describe its decoder, and ours for them.
DECODER_FIELDS = {
    "decoder_hidden_size": "decoder_hidden_size",
    "semantic_loss_ignore_index": "semantic_loss_ignore_index",
}


def model_from_segformer(
    model_class: type[PreTrainedModel],
    checkpoint: str | os.PathLike,
    revision: str = "main",
    **overrides: Any,
) -> PreTrainedModel:
    """A SegDeformer of the checkpoint's size with its weights.

    checkpoint: folder, or name on the Hub, of a SegFormer (bare, classifier or segmenter). Without a segmenter's decoder
        the encoder alone is loaded.
    revision: branch, tag or commit on the Hub.
    overrides: fields of our configuration; the rest is the checkpoint's.
    """
    source = AutoConfig.from_pretrained(checkpoint, revision=revision)
    if source.model_type != "segformer":
        raise ValueError(
            f"the checkpoint holds a '{source.model_type}', and from_segformer reads SegFormer. For other encoders use "
            "from_backbone."
        )
    has_decoder = SegformerForSemanticSegmentation.__name__ in (source.architectures or ())
    source_class = SegformerForSemanticSegmentation if has_decoder else SegformerModel
    segformer = source_class.from_pretrained(checkpoint, revision=revision)
    model = model_class(model_class.config_class(**segformer_options(source, has_decoder, overrides)))
    copy_weights(segformer, model, has_decoder)
    return model.eval()


def segformer_options(
    source: PreTrainedConfig, has_decoder: bool, overrides: dict[str, Any]
) -> dict[str, Any]:
    """The fields of our configuration: the checkpoint's sizes and labels where it has a decoder, then the overrides."""
    options = {"backbone_config": encoder_config(source)}
    if has_decoder:
        options |= {ours: getattr(source, theirs) for theirs, ours in DECODER_FIELDS.items()}
        options["neck"] = "segformer"
        if not {"id2label", "num_labels"} & overrides.keys():
            options |= {"id2label": source.id2label, "label2id": source.label2id}
    return options | overrides


def encoder_config(source: PreTrainedConfig) -> SegformerConfig:
    """The encoder's part of a SegFormer's configuration, without the labels of its task."""
    kept = {
        name: value
        for name, value in source.to_diff_dict().items()
        if name in SegformerConfig.__dataclass_fields__
        and name not in {"id2label", "label2id", "architectures", "dtype", *DECODER_FIELDS}
    }
    return SegformerConfig(**kept)


def copy_weights(segformer: PreTrainedModel, model: PreTrainedModel, has_decoder: bool) -> None:
    """Fills the model's encoder, and where there are some and they fit, its neck and classifier; says what was loaded."""
    encoder = segformer.segformer if has_decoder else segformer
    model.backbone.encoder.model.load_state_dict(encoder.state_dict())
    loaded = ["encoder"]
    config = model.config
    if has_decoder and config.decoder == "segdeformer" and config.neck == "segformer":
        head = segformer.decode_head
        copy_neck(head, model.decoder.neck)
        copy_classifier(head.classifier, model.classifier, segformer.config, config)
        known = set(segformer.config.id2label.values()) & set(config.id2label.values())
        loaded += ["all-MLP decoder", f"classifier rows of {len(known)} of {config.num_labels} classes"]
    logger.warning("loaded from a SegFormer checkpoint: %s; all else is newly initialised", ", ".join(loaded))


@torch.no_grad()
def copy_neck(head: nn.Module, neck: nn.Module) -> None:
    """SegFormer's `decode_head` -> `SegformerFusion`. There the fusion reads its levels coarse to fine, here fine to coarse."""
    projections = head.linear_projections
    if neck.fusion.convolution.weight.shape != head.linear_fuse.weight.shape:
        raise ValueError(
            f"the checkpoint's decoder is {len(head.linear_fuse.weight)} wide and the model's "
            f"{len(neck.fusion.convolution.weight)}. Leave out decoder_hidden_size."
        )
    for ours, theirs in zip(neck.projections, projections, strict=True):
        ours.load_state_dict(theirs.proj.state_dict())
    levels = head.linear_fuse.weight.chunk(len(projections), dim=1)
    neck.fusion.convolution.weight.copy_(torch.cat(levels[::-1], dim=1))
    neck.fusion.norm.load_state_dict(head.batch_norm.state_dict())


@torch.no_grad()
def copy_classifier(
    theirs: nn.Conv2d, ours: nn.Conv2d, source: PreTrainedConfig, config: PreTrainedConfig
) -> None:
    """Rows of classes with equal names; the others keep their fresh initialisation."""
    rows = rows_of_equal_names(source.id2label, config.id2label)
    ours.weight.copy_(with_kept_rows(theirs.weight, ours.weight, rows))
    ours.bias.copy_(with_kept_rows(theirs.bias, ours.bias, rows))
