"""The decoder and loss fields that segmenters' configurations share, and those of the Unet decoder."""

from typing import Any, Self

from huggingface_hub.dataclasses import strict

from .checked_config import CheckedConfig

DECODER_WIDTHS = {"upernet": 512, "semantic_fpn": 128, "segdeformer": 256}
UNET_CHOICES = {
    "upsampling": ("expand", "nonlocal", "nonlocal_global"),
    "nonlocal_bias": ("clean", "official"),
    "nonlocal_shortcut": ("expand", "bilinear"),
}


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
    logits_stride: pixels of the image, along each axis, for one cell of the logits. Not a choice: the segmenter fills it in when
        it is built, whatever was given.
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
    logits_stride: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = DECODER_WIDTHS.get(self.decoder, 512)
        if self.use_auxiliary_head is None:
            self.use_auxiliary_head = self.decoder == "upernet"
        super().__post_init__(**kwargs)

    def context_mining(self) -> dict[str, Any]:
        """The options of decoder "segdeformer", by their names in `ContextMining`."""
        return {"reduction_ratio": self.reduction_ratio}

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


@strict
class UnetDecodingConfig(DecodingConfig):
    """Fields of segmenters that know decoder "unet" besides all others, and have `hidden_sizes` and `depths`.

    decoder: "unet" mirrors the encoder's stages: GLAM-Swin-Unet, or Swin-Unet without global tokens. Its
        `decoder_hidden_size` is the width of the first stage.
    upsampling: how "unet" goes from one resolution to the next. "expand" is Swin-Unet's patch expansion; "nonlocal" is
        GLAM's NLU as in the authors' code, inside windows; "nonlocal_global" is NLU as printed, over all coarse tokens.
    window_size: side of the windows of "nonlocal", in patches of the coarser stage.
    nonlocal_bias: numbering of the relative positions of "nonlocal": "clean", or "official" for converted weights.
    nonlocal_shortcut: residual of both kinds of NLU: "expand", or the authors' other choice, "bilinear".
    """

    upsampling: str = "expand"
    window_size: int = 7
    nonlocal_bias: str = "clean"
    nonlocal_shortcut: str = "expand"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder == "unet" and self.decoder_hidden_size is None:
            self.decoder_hidden_size = self.hidden_sizes[0]
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size by name, with some fields changed."""
        if overrides.get("decoder") == "unet":  # whose width is no preset's
            overrides = {"decoder_hidden_size": None, **overrides}
        return super().preset(name, **overrides)

    def stage_window(self, stage: int) -> int:  # noqa: ARG002 - families differ
        """Side of the windows on a stage's grid."""
        return self.window_size

    def upsampling_heads(self, stage: int) -> int:
        """Attention heads of the step up to a stage: those of the coarser stage."""
        return self.num_heads[stage + 1]

    def validate_unet(self) -> None:
        for name, known in UNET_CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is '{getattr(self, name)}'. Use one of {', '.join(known)}.")
        if self.decoder != "unet":
            return
        if len(self.depths) < 2 or self.out_features != self.stage_names[1:]:
            raise ValueError(
                f"decoder 'unet' is given {len(self.depths)} stage(s) and out_features {self.out_features}. "
                "It needs two stages or more, and all of them: leave out out_features."
            )
        width = self.hidden_sizes[0]
        if self.decoder_hidden_size != width:
            raise ValueError(
                f"decoder_hidden_size is {self.decoder_hidden_size}; with decoder 'unet' it is the first stage's width, {width}. "
                f"Leave it out, or pass decoder_hidden_size={width} where a checkpoint has another."
            )
