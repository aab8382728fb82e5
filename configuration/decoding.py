"""The decoder and loss fields that every segmenter's configuration shares."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .checked_config import CheckedConfig

DECODER_WIDTHS = {"upernet": 512, "semantic_fpn": 128, "segdeformer": 256}


@strict
class DecodingConfig(CheckedConfig):
    """Fields of every segmenter: decoder, heads and loss.

    decoder: name of the decoder, "upernet", "semantic_fpn" or "segdeformer".
    decoder_hidden_size: width of the map that the decoder gives the classifier; None is that of the decoder's paper.
    use_auxiliary_head: whether a small FCN head on the second coarsest feature map adds its loss in training; None is
        the usual choice, yes for "upernet" and no for all others.
    auxiliary_hidden_size: width of that head.
    auxiliary_loss_weight: factor of its loss.
    attention_loss_weight: factor of the loss on SegDeformer's mid-level map, alpha in eq. 9 of its paper; 0 leaves it out.
    reduction_ratio: side of the cells to which SegDeformer's keys and values are reduced; 1 is full attention.
    semantic_loss_ignore_index: label of pixels that no term of the loss counts.
    loss: terms joined by "+", such as "cross_entropy+dice"; see `modeling/losses.py`.
    loss_reduction: "valid" averages the cross-entropy over labelled pixels; "all" over all pixels, ignored ones
        counting zero, as the GLAM authors' training code does.
    class_weights: one factor for each class in the cross-entropy, or None.
    """

    decoder: str = "upernet"
    decoder_hidden_size: int | None = None
    use_auxiliary_head: bool | None = None
    auxiliary_hidden_size: int = 256
    auxiliary_loss_weight: float | int = 0.4
    attention_loss_weight: float | int = 0.4
    reduction_ratio: int = 1
    semantic_loss_ignore_index: int = 255
    loss: str = "cross_entropy"
    loss_reduction: str = "valid"
    class_weights: list[float | int] | tuple[float | int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = DECODER_WIDTHS.get(self.decoder, 512)
        if self.use_auxiliary_head is None:
            self.use_auxiliary_head = self.decoder == "upernet"
        super().__post_init__(**kwargs)

    def validate_decoding(self) -> None:
        if self.loss_reduction not in ("valid", "all"):
            raise ValueError(f"loss_reduction is '{self.loss_reduction}'. Use 'valid' or 'all'.")
        if self.reduction_ratio < 1:
            raise ValueError(f"reduction_ratio is {self.reduction_ratio}. Use 1 (full attention) or more.")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries for {self.num_labels} labels. "
                "Give one weight per label, in the order of id2label."
            )
