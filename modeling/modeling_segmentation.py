"""Base class of all segmenters: backbone -> decoder -> classifier (+ auxiliary head) -> loss.

The file of a model family builds the backbone, which returns `feature_maps`, fine to coarse, and has their
`channels` and `strides`; everything else is here. `build_stage` builds a stage of the encoder from its index,
for decoders that mirror the encoder.

Legend: B batch, K labels, C channels, H, W image height and width.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.checked_config import choose
from ..configuration.decoding import SINGLE_MAP_DECODERS, DecodingConfig
from ..configuration.label_names import labels_in_file, labels_of
from .blocks import Decoded
from .decoder_upernet import FcnHead
from .decoders import CLASSIFIERS, DECODERS
from .label_rows import LabelClassifier, LabelRows, rows_of_equal_names
from .losses import check_label_size, parse_terms, segmentation_loss
from .pretrained import HUB_OPTIONS, ContextsegPreTrainedModel

logger = logging.getLogger(__name__)


class SegmentationModel(ContextsegPreTrainedModel):
    """Backbone, decoder and heads; `logits` have `config.logits_stride` and are resized only in the loss."""

    def __init__(
        self,
        config: DecodingConfig,
        backbone: nn.Module,
        build_stage: Callable[[int], nn.Module] | None = None,
    ) -> None:
        """Adds decoder, classifier and auxiliary head to a backbone; sets `config.logits_stride`."""
        super().__init__(config)
        channels = tuple(backbone.channels)
        check_channels(config, channels)
        parse_terms(config.loss)  # a wrong name fails here, not at the first training step
        self.backbone = backbone
        self.decoder = choose("decoder", config.decoder, DECODERS)(config, backbone, build_stage)
        self.classifier = LabelClassifier(config.decoder_hidden_size, config.num_labels, kernel_size=1)
        self.auxiliary_head = None
        if config.use_auxiliary_head:
            self.auxiliary_head = FcnHead(
                channels[config.auxiliary_map], config.auxiliary_hidden_size, config.num_labels
            )
        config.logits_stride = 1 if config.decoder in CLASSIFIERS else backbone.strides[0]
        if config.decoder in CLASSIFIERS:
            build_classifier = choose("decoder", config.decoder, CLASSIFIERS)
            self.classifier = build_classifier(config, backbone, self.decoder)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """(B, C, H, W) -> logits (B, K, H / stride, W / stride); with labels, also the loss.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            pixel_mask: (B, H, W), 1 for image, 0 for padding; None without padding.
            labels: (B, H, W), class ids; pixels with `config.semantic_loss_ignore_index` are ignored.
            output_hidden_states: Whether to return the feature maps of every stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape or label is wrong, or attentions are not available.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        outputs = self.backbone(
            pixel_values,
            pixel_mask=pixel_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        check_label_size(pixel_values, labels)  # after the backbone's check of the images
        decoded = self.decoder(outputs.feature_maps, pixel_mask)
        logits = self.logits_of(decoded, pixel_values)
        loss = None
        if labels is not None:
            loss = self.compute_loss(logits, decoded, outputs.feature_maps, labels)
        attentions = (*(outputs.attentions or ()), *decoded.attentions)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=attentions if output_attentions else None,
        )

    def logits_of(self, decoded: Decoded, pixel_values: Tensor) -> Tensor:  # noqa: ARG002 - families differ
        """Decoded features, (B, C, H, W) -> (B, K, H / stride, W / stride)."""
        return self.classifier(decoded.feature_map)

    def compute_loss(
        self, logits: Tensor, decoded: Decoded, feature_maps: tuple[Tensor, ...], labels: Tensor
    ) -> Tensor:
        """(B, K, h, w), ..., (B, H, W) -> scalar, the weighted sum of main, mid-level and auxiliary loss."""
        return self.sum_of_losses(logits, decoded.mid_logits, self.auxiliary_logits(feature_maps), labels)

    def auxiliary_logits(self, feature_maps: tuple[Tensor, ...]) -> Tensor | None:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, K, h, w) of the auxiliary head, if there is one."""
        if self.auxiliary_head is None:
            return None
        return self.auxiliary_head(feature_maps[self.config.auxiliary_map])

    def sum_of_losses(
        self, logits: Tensor, mid_logits: Tensor | None, auxiliary_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Logits (B, K, h, w) of each head or None, (B, H, W) -> scalar, the weighted sum of their losses."""
        loss = self.label_loss(logits, labels)
        if mid_logits is not None and self.config.attention_loss_weight:
            loss = loss + self.config.attention_loss_weight * self.label_loss(mid_logits, labels)
        if auxiliary_logits is not None:
            loss = loss + self.config.auxiliary_loss_weight * self.label_loss(auxiliary_logits, labels)
        return loss

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, h, w), (B, H, W) -> scalar, the configured loss of one head."""
        return segmentation_loss(logits, labels, **self.loss_options())

    def loss_options(self) -> dict[str, Any]:
        """The options of `segmentation_loss` in the configuration."""
        config = self.config
        return {
            "terms": config.loss,
            "ignore_index": config.semantic_loss_ignore_index,
            "class_weights": config.class_weights,
            "reduction": config.loss_reduction,
            "label_smoothing": config.label_smoothing,
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint as transformers does, and adapts the classifiers if other labels are given.

        Args:
            pretrained_model_name_or_path: Local folder, or name on the Hub.
            *args: Further arguments of transformers.
            **kwargs: Options of transformers and configuration fields. With other `id2label` or `num_labels`, classes
                of the same name keep their weights; with other `num_channels`, the first convolution is adapted.

        Raises:
            ValueError: If both a config object and labels are given.
        """
        stored, wanted = stored_and_wanted_labels(cls.config_class, pretrained_model_name_or_path, kwargs)
        if stored == wanted:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs["config"] = deepcopy(kwargs["config"])
        vars(kwargs["config"])["id2label"] = stored  # as in the file: a setter would check it
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        (loaded[0] if type(loaded) is tuple else loaded).replace_labels(wanted)  # with output_loading_info
        return loaded

    def replace_labels(self, id2label: Mapping[int, str]) -> None:
        """Resizes the classifiers to new labels (id -> name); classes of known names keep their weights."""
        id2label, label2id = labels_of(id2label)
        rows = rows_of_equal_names(self.config.id2label, id2label)
        for module in list(self.modules()):
            if isinstance(module, LabelRows):
                module.replace_labels(rows, self._init_weights)
        kept = sum(row is not None for row in rows)
        logger.warning(
            "classifier resized to %d labels: %d keep their weights by name, %d are new and need training",
            len(rows), kept, len(rows) - kept,
        )  # fmt: skip
        vars(self.config).update(id2label=id2label, label2id=label2id)


def stored_and_wanted_labels(
    config_class: type[PreTrainedConfig], name: Any, kwargs: dict[str, Any]
) -> tuple[dict[int, str] | None, dict[int, str] | None]:
    """Returns the labels of a checkpoint and those requested, or twice None; sets `kwargs["config"]`."""
    label_options = {"id2label", "label2id", "num_labels"} & kwargs.keys()
    if name is None or not (label_options or isinstance(kwargs.get("config"), PreTrainedConfig)):
        return None, None
    hub = {option: kwargs[option] for option in HUB_OPTIONS & kwargs.keys()}
    if label_options:
        config = kwargs.get("config") or name
        if isinstance(config, PreTrainedConfig):
            raise ValueError(f"got a config and {sorted(label_options)}. Set the labels in the config.")
        fields = kwargs.keys() & config_class.__dataclass_fields__.keys()
        wanted = {option: kwargs.pop(option) for option in label_options | fields}
        kwargs["config"] = config_class.from_pretrained(config, **hub, **wanted)
    stored, _ = config_class.get_config_dict(name, **hub)
    if not stored.get("id2label"):
        return None, None
    return labels_in_file(stored["id2label"])[0], dict(kwargs["config"].id2label)


def check_channels(config: DecodingConfig, channels: tuple[int, ...]) -> None:
    """Raises ValueError if there are too few feature maps for a decoder, or more than it trains."""
    if config.decoder not in SINGLE_MAP_DECODERS:
        if len(channels) < 2:
            raise ValueError(
                f"the backbone returns {len(channels)} feature map; decoders need two or more. "
                "Name more stages in out_features, or leave the option out."
            )
        if config.use_auxiliary_head and not -len(channels) <= config.auxiliary_map < len(channels):
            raise ValueError(
                f"auxiliary_map is {config.auxiliary_map}, but the backbone returns {len(channels)} feature maps. Use "
                f"{-len(channels)} to {len(channels) - 1}."
            )
    elif len(channels) > 1:
        raise ValueError(
            f"the backbone returns {len(channels)} feature maps, but decoder '{config.decoder}' takes only the last one. "
            "Name one stage in out_features, or choose another decoder."
        )
