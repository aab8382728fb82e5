"""The one base of all segmenters: backbone -> decoder -> classifier (+ auxiliary head) -> loss.

A paper's file builds its backbone and calls `build_heads`; everything else is here, the same for all.

Legend: B batch, K labels, C channels, H, W image height and width.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.options import choose
from .blocks import Decoded
from .decoder_segdeformer import SegDeformerDecoder
from .decoder_unet import UnetDecoder
from .decoder_upernet import FcnHead
from .decoders import DECODERS
from .losses import parse_terms, segmentation_loss
from .pretrained import ContextsegPreTrainedModel

logger = logging.getLogger(__name__)

HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}


class SegmentationModel(ContextsegPreTrainedModel):
    """Backbone, decoder and heads; `logits` come at `config.logits_stride`, and are resized in the loss only."""

    def build_heads(self, channels: list[int]) -> None:
        """Decoder, classifier and auxiliary head over feature maps of these widths, fine to coarse."""
        config = self.config
        if len(channels) < 2:
            raise ValueError(
                f"the backbone gives {len(channels)} feature map; decoders need two or more. "
                "Name more stages in out_features, or leave the option out."
            )
        parse_terms(config.loss)  # a wrong name fails here, not at the first training step
        self.decoder = self.build_decoder(tuple(channels))
        self.classifier = nn.Conv2d(config.decoder_hidden_size, config.num_labels, kernel_size=1)
        self.auxiliary_head = None
        if config.use_auxiliary_head:
            self.auxiliary_head = FcnHead(channels[-2], config.auxiliary_hidden_size, config.num_labels)

    def build_decoder(self, channels: tuple[int, ...]) -> nn.Module:
        """The decoder that the configuration names, from feature maps (B, C_i, h_i, w_i) to `Decoded`."""
        return choose("decoder", self.config.decoder, DECODERS)(self.config, channels)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """Segments images, and with labels computes the loss.

        pixel_values: (B, C, H, W), normalised by the image processor.
        pixel_mask: (B, H, W), one where there is image and zero where there is padding; None without padding.
        labels: (B, H, W) class indices; `config.semantic_loss_ignore_index` where no loss is wanted.
        Returns logits (B, K, H / stride, W / stride).
        """
        outputs = self.backbone(
            pixel_values,
            pixel_mask=pixel_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        decoded = self.decode(outputs.feature_maps, pixel_mask)
        logits = self.classifier(decoded.feature_map)
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

    def decode(self, feature_maps: tuple[Tensor, ...], pixel_mask: Tensor | None) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse, optional (B, H, W) one where there is image -> `Decoded`."""
        if isinstance(self.decoder, (SegDeformerDecoder, UnetDecoder)):  # which attend over padding as well
            return self.decoder(feature_maps, pixel_mask)
        return self.decoder(feature_maps)

    def compute_loss(
        self,
        logits: Tensor,
        decoded: Decoded,
        feature_maps: tuple[Tensor, ...],
        labels: Tensor,
    ) -> Tensor:
        """(B, K, h, w), feature maps fine to coarse, (B, H, W) -> scalar: the main loss, plus those of the mid-level map and the auxiliary head."""
        loss = self.label_loss(logits, labels)
        if decoded.mid_logits is not None and self.config.attention_loss_weight:
            loss = loss + self.config.attention_loss_weight * self.label_loss(decoded.mid_logits, labels)
        if self.auxiliary_head is not None:
            auxiliary_logits = self.auxiliary_head(feature_maps[-2])
            loss = loss + self.config.auxiliary_loss_weight * self.label_loss(auxiliary_logits, labels)
        return loss

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, h, w), (B, H, W) -> scalar: the configured loss of one head."""
        config = self.config
        return segmentation_loss(
            logits,
            labels,
            terms=config.loss,
            ignore_index=config.semantic_loss_ignore_index,
            class_weights=config.class_weights,
            reduction=config.loss_reduction,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; with other labels than the checkpoint's, the classifiers are renewed.

        Rows of classes whose names the checkpoint knows are kept, see `replace_labels`.
        """
        stored, wanted = cls.stored_and_wanted_labels(pretrained_model_name_or_path, kwargs)
        if stored == wanted:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs["config"] = deepcopy(kwargs["config"])
        kwargs["config"].id2label = stored
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.replace_labels(wanted)
        return loaded

    @classmethod
    def stored_and_wanted_labels(
        cls, name: Any, kwargs: dict[str, Any]
    ) -> tuple[dict[int, str] | None, dict[int, str] | None]:
        """The labels of a checkpoint and those that a call of `from_pretrained` asks for, or twice None.

        Leaves the configuration of the wanted model in `kwargs["config"]`.
        """
        label_options = {"id2label", "label2id", "num_labels"} & kwargs.keys()
        if name is None or not (label_options or isinstance(kwargs.get("config"), PreTrainedConfig)):
            return None, None
        hub = {option: kwargs[option] for option in HUB_OPTIONS & kwargs.keys()}
        if label_options:
            config = kwargs.get("config") or name
            if isinstance(config, PreTrainedConfig):
                raise ValueError(
                    f"got a config object and {sorted(label_options)}. Set the labels in the config."
                )
            fields = kwargs.keys() & cls.config_class.__dataclass_fields__.keys()
            wanted = {option: kwargs.pop(option) for option in label_options | fields}
            kwargs["config"] = cls.config_class.from_pretrained(config, **hub, **wanted)
        stored, _ = cls.config_class.get_config_dict(name, **hub)
        stored = {int(index): label for index, label in stored.get("id2label", {}).items()}
        wanted_labels = dict(kwargs["config"].id2label)
        return (stored, wanted_labels) if stored else (None, None)

    def replace_labels(self, id2label: Mapping[int, str]) -> None:
        """Renews the classifiers for other labels; classes with a name that the model knows keep their weights."""
        known = {name: index for index, name in self.config.id2label.items()}
        rows = [known.get(id2label[index]) for index in range(len(id2label))]
        self.classifier = renewed(self.classifier, rows, self._init_weights)
        if self.auxiliary_head is not None:
            self.auxiliary_head.classifier = renewed(self.auxiliary_head.classifier, rows, self._init_weights)
        if isinstance(self.decoder, SegDeformerDecoder):
            self.decoder.replace_labels(rows)
        kept = sum(row is not None for row in rows)
        logger.warning(
            "classifier renewed for %d labels: %d keep their weights by name, %d are new and need training",
            len(rows), kept, len(rows) - kept,
        )  # fmt: skip
        self.config.id2label = dict(id2label)
        self.config.label2id = {name: index for index, name in id2label.items()}


@torch.no_grad()
def renewed(
    classifier: nn.Conv2d, rows: list[int | None], initialise: Callable[[nn.Module], None]
) -> nn.Conv2d:
    """A classifier with one output for each entry: the old one's row, or a fresh one where that is None."""
    weight = classifier.weight
    new = nn.Conv2d(
        classifier.in_channels,
        len(rows),
        kernel_size=1,
        bias=classifier.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    initialise(new)
    for row, old in enumerate(rows):
        if old is not None:
            new.weight[row] = weight[old]
            if new.bias is not None:
                new.bias[row] = classifier.bias[old]
    return new
