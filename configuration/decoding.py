"""The decoder and loss fields that all segmenters share, and those of the U-Net decoder."""

from typing import Any, Self

from .checked_config import CheckedConfig
from .field_rules import MOST_WEIGHTS, checked

DECODER_WIDTHS = {
    **{"upernet": 512, "semantic_fpn": 128, "semantic_branch": 256, "segdeformer": 256, "unet": 64},
}
SINGLE_MAP_DECODERS = ("one_step", "progressive")  # they take the coarsest feature map only
UNET_CHOICES = {
    "upsampling": ("expand", "nonlocal", "nonlocal_global"),
    "nonlocal_bias": ("clean", "official"),
    "nonlocal_shortcut": ("expand", "bilinear"),
}


@checked
class LossConfig(CheckedConfig):
    """Fields of the loss of every segmenter.

    semantic_loss_ignore_index: Label of pixels that no loss term counts.
    loss: Loss terms joined by "+", each with an optional factor, such as "cross_entropy+0.5*dice"; the terms
        are "cross_entropy", "dice", "tversky", "focal", "lovasz" and "boundary", and the Dice of all classes but the
        first, "foreground_dice" over the batch or "foreground_dice_per_image".
    loss_reduction: "valid" averages "cross_entropy" and "focal" over labeled pixels; "all" over all pixels,
        with 0 for ignored ones, as in the training code of GLAM's authors.
    class_weights: Weight of each class in "cross_entropy", "focal" and "boundary", in the order of
        `id2label`; None weights all equally.
    label_smoothing: Share of each label that is spread over all classes in "cross_entropy", from 0 to below 1.
    logits_stride: Stride of the logits in pixels of the image. Set by the segmenter when it is built; any
        given value is overwritten.
    """

    semantic_loss_ignore_index: int = 255
    loss: str = "cross_entropy"
    loss_reduction: str = "valid"
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    label_smoothing: float | int = 0.0
    logits_stride: int | None = None

    def validate_loss(self) -> None:
        if self.loss_reduction not in ("valid", "all"):
            raise ValueError(f"loss_reduction is '{self.loss_reduction}'. Use 'valid' or 'all'.")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries for {self.num_labels} labels. "
                "Give one weight per label, in the order of id2label."
            )
        if self.class_weights is not None and not any(self.class_weights):
            raise ValueError(
                "class_weights are all 0, so there is nothing to learn. Give one of them a weight."
            )


@checked
class DecodingConfig(LossConfig):
    """Fields of every segmenter of images: decoder, heads, and the loss as in `LossConfig`.

    decoder: Name of the decoder: "upernet", "semantic_fpn", "semantic_branch" (Semantic FPN without the pyramid),
        "segdeformer", "unet", or one on the coarsest feature map alone: "one_step", a single transposed
        convolution, or "progressive", which doubles the resolution in each step.
    decoder_hidden_size: Channels of the feature map that the decoder passes to the classifier; None takes the
        value of the decoder's paper. "one_step" and "progressive" have the width of the encoder instead.
    use_auxiliary_head: Whether an FCN head on a feature map of the encoder adds an auxiliary loss in
        training; None uses it for "upernet" only, as is usual. Not with "one_step" and "progressive".
    auxiliary_hidden_size: Channels of the auxiliary head.
    auxiliary_map: Feature map of the auxiliary head, as an index into the maps from fine to coarse: -2 is the
        second coarsest, as for Swin; -1 the last, as in mmsegmentation's DeiT.
    auxiliary_loss_weight: Weight of the auxiliary loss.
    attention_loss_weight: Weight of the loss on SegDeformer's mid-level scores, alpha in eq. 9 of its paper;
        0 disables it.
    reduction_ratio: SegDeformer merges R x R positions into one key and value; 1 is full attention.
    """

    decoder: str = "upernet"
    decoder_hidden_size: int | None = None
    use_auxiliary_head: bool | None = None
    auxiliary_hidden_size: int = 256
    auxiliary_map: int = -2
    auxiliary_loss_weight: float | int = 0.4
    attention_loss_weight: float | int = 0.4
    reduction_ratio: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = DECODER_WIDTHS.get(self.decoder, 512)
        if self.use_auxiliary_head is None:
            self.use_auxiliary_head = self.decoder == "upernet"
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """As in `CheckedConfig`; the width of the decoder "unet" does not come from the preset."""
        if overrides.get("decoder") == "unet":
            overrides = {"decoder_hidden_size": None, **overrides}
        return super().preset(name, **overrides)

    def context_mining(self) -> dict[str, Any]:
        """The options of the decoder "segdeformer", named as in `ContextMining`."""
        return {"reduction_ratio": self.reduction_ratio}

    def validate_auxiliary_head(self) -> None:
        if self.use_auxiliary_head and self.decoder in SINGLE_MAP_DECODERS:
            raise ValueError(
                f"decoder '{self.decoder}' takes one feature map, so there is none for an auxiliary head. Set "
                "use_auxiliary_head=False, or choose another decoder."
            )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of the encoder; 0 if another library builds it."""
        return 0.0

    def validate_number_of_weights(self) -> None:
        widths = getattr(self, "hidden_sizes", [self.decoder_hidden_size])
        width, taps = self.decoder_hidden_size, 9 * (2 * len(widths) + 6)  # of 3x3 convolutions
        heads = width * (taps * width + 10 * sum(widths) + self.num_labels) + 9 * widths[-1] * (
            self.auxiliary_hidden_size if self.use_auxiliary_head else 0
        )
        total = self.encoder_weights() + heads
        if total > MOST_WEIGHTS:
            raise ValueError(
                f"the model would have about {total:.1e} weights, but {MOST_WEIGHTS:.0e} is the limit. Reduce its depths "
                "or widths."
            )


@checked
class UnetDecodingConfig(DecodingConfig):
    """Fields of segmenters whose decoder "unet" mirrors the encoder; with `hidden_sizes`, `depths`, `num_heads`.

    decoder: Name of the decoder, as in `DecodingConfig`. "unet" mirrors the
        encoder's stages: GLAM-Swin-Unet, or Swin-Unet without global tokens. Its `decoder_hidden_size` is
        that of the first stage.
    upsampling: Upsampling of the decoder "unet". "expand" is Swin-Unet's patch expansion, "nonlocal" is
        GLAM's non-local upsampling (NLU) within windows, as in the authors' code, and "nonlocal_global" is
        NLU over all coarse tokens, as in the paper.
    window_size: Side of the windows of "nonlocal", in patches of the coarser stage.
    nonlocal_bias: Indexing of the relative positions of "nonlocal": "clean", or "official" for converted
        weights.
    nonlocal_shortcut: Residual of both kinds of NLU: "expand", or the authors' alternative "bilinear".
    """

    upsampling: str = "expand"
    window_size: int = 7
    nonlocal_bias: str = "clean"
    nonlocal_shortcut: str = "expand"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder == "unet" and self.decoder_hidden_size is None:
            self.decoder_hidden_size = self.hidden_sizes[0]
        super().__post_init__(**kwargs)

    def stage_window(self, stage: int) -> tuple[int, ...]:  # noqa: ARG002 - families differ
        """Sides of a stage's windows along each axis, in patches of the stage."""
        return (self.window_size,) * 2

    def upsampling_heads(self, stage: int) -> int:
        """Attention heads of the upsampling to a stage: those of the next coarser stage."""
        return self.num_heads[stage + 1]

    def validate_unet(self) -> None:
        for name, known in UNET_CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is '{getattr(self, name)}'. Use one of {', '.join(known)}.")
        if self.decoder != "unet":
            return
        if len(self.depths) < 2 or self.out_features != self.stage_names[1:]:
            raise ValueError(
                f"the encoder has {len(self.depths)} stage(s) and out_features {self.out_features}. Decoder 'unet' "
                "needs two stages or more, and the features of all of them: leave out out_features."
            )
        width = self.hidden_sizes[0]
        if self.decoder_hidden_size != width:
            raise ValueError(
                f"decoder_hidden_size is {self.decoder_hidden_size}, but decoder 'unet' has the width of the first "
                f"stage, {width}. Leave it out, or pass decoder_hidden_size={width} if a checkpoint sets another."
            )
