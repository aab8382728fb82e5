"""The fields of the Unet decoder, for configurations of encoders that it can mirror."""

from typing import Any, Self

from huggingface_hub.dataclasses import strict

from .decoding import DecodingConfig

CHOICES = {
    "upsampling": ("expand", "nonlocal", "nonlocal_global"),
    "nonlocal_bias": ("clean", "official"),
    "nonlocal_shortcut": ("expand", "bilinear"),
}


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

    def validate_unet(self) -> None:
        for name, known in CHOICES.items():
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
