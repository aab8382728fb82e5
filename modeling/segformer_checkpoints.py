"""Loads SegFormer checkpoints of transformers into SegDeformer: encoder, and all-MLP decoder as the neck.

transformers reads the checkpoint, so the layout of `nvidia/segformer-*` and newer ones both work; the tensors
are copied here. The context mining, which SegFormer does not have, stays newly initialized.
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

from ..configuration.backbone_configs import changed_backbone
from .input_channels import fit_stem
from .label_rows import rows_of_equal_names, with_kept_rows

logger = logging.getLogger(__name__)

# Decoder fields of a SegFormer configuration -> our fields.
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
    """Builds a SegDeformer with the sizes and weights of a SegFormer checkpoint.

    Args:
        model_class: Class of the model.
        checkpoint: Local folder, or name on the Hub, of a SegFormer (bare, classifier or segmenter). If it
            has no decoder, only the encoder is loaded.
        revision: Branch, tag or commit on the Hub.
        **overrides: Fields of our configuration; all others are taken from the checkpoint.

    Raises:
        ValueError: If the checkpoint is not a SegFormer, or its decoder has another width than the model's.
    """
    source = AutoConfig.from_pretrained(checkpoint, revision=revision)
    if source.model_type != "segformer":
        raise ValueError(
            f"the checkpoint is a '{source.model_type}'; from_segformer loads only SegFormer. "
            "For other encoders use from_backbone."
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
    """Returns our configuration fields: encoder, decoder and labels of the checkpoint, then the overrides."""
    encoder = segformer_encoder_config(source)
    changes = overrides.get("backbone_config")
    if changes is not None:
        overrides = {**overrides, "backbone_config": changed_backbone(encoder, changes)}
    options = {"backbone_config": encoder}
    if has_decoder:
        options |= {ours: getattr(source, theirs) for theirs, ours in DECODER_FIELDS.items()}
        options["neck"] = "segformer"
        if overrides.get("decoder") == "unet":  # whose channels double from this width on
            del options["decoder_hidden_size"]
        if not {"id2label", "label2id", "num_labels"} & overrides.keys():
            options |= {"id2label": source.id2label, "label2id": source.label2id}
    return options | overrides


def segformer_encoder_config(source: PreTrainedConfig) -> SegformerConfig:
    """Returns the encoder's part of a SegFormer configuration, without labels."""
    kept = {
        name: value
        for name, value in source.to_diff_dict().items()
        if name in SegformerConfig.__dataclass_fields__
        and name not in {"id2label", "label2id", "architectures", "dtype", *DECODER_FIELDS}
    }
    return SegformerConfig(**kept)


def copy_weights(segformer: PreTrainedModel, model: PreTrainedModel, has_decoder: bool) -> None:
    """Copies the encoder, and neck and classifier if both models have them; logs what was loaded."""
    encoder = segformer.segformer if has_decoder else segformer
    target = model.backbone.encoder.model
    target.load_state_dict(fit_stem(encoder.state_dict(), target.state_dict()))
    loaded = ["encoder"]
    config = model.config
    if has_decoder and config.decoder == "segdeformer" and config.neck == "segformer":
        head = segformer.decode_head
        copy_neck(head, model.decoder.neck)
        copy_classifier(head.classifier, model.classifier, segformer.config, config)
        known = set(segformer.config.id2label.values()) & set(config.id2label.values())
        loaded += ["all-MLP decoder", f"classifier rows of {len(known)} of {config.num_labels} classes"]
    logger.warning("loaded from a SegFormer checkpoint: %s; the rest is newly initialized", ", ".join(loaded))


@torch.no_grad()
def copy_neck(head: nn.Module, neck: nn.Module) -> None:
    """Copies SegFormer's `decode_head` to `SegformerFusion`, reversing its coarse-to-fine order of levels."""
    projections = head.linear_projections
    if neck.fusion.convolution.weight.shape != head.linear_fuse.weight.shape:
        raise ValueError(
            f"the checkpoint's decoder has {len(head.linear_fuse.weight)} channels, the model's "
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
    """Copies the rows of classes with equal names; the others stay newly initialized."""
    rows = rows_of_equal_names(source.id2label, config.id2label)
    ours.weight.copy_(with_kept_rows(theirs.weight, ours.weight, rows))
    ours.bias.copy_(with_kept_rows(theirs.bias, ours.bias, rows))
