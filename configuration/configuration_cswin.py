"""CSWin: attention within vertical and horizontal stripes (Dong et al., "CSWin Transformer: A General Vision
Transformer Backbone with Cross-Shaped Windows", CVPR 2022)."""

from .field_rules import checked
from .staged import StagedConfig


@checked
class CswinConfig(StagedConfig):
    """Configuration of the CSWin backbone, classifier and segmenter.

    The defaults are the authors' Tiny size with UPerNet.

    Besides the fields of `StagedConfig`:

    hidden_sizes: Channels of each stage.
    stripe_widths: Width of the stripes of each stage, in patches of the stage; 0 is one window over the whole
        grid.
    stripe_padding: How sides that are not a multiple of the patch or stripe size are padded. "masked" appends
        zeros to the image, and masked zeros to the grid. "official" follows the authors' code: pixels after
        the last complete patch are dropped, and zeros are added to both ends of the grid and not masked.
    """

    model_type = "cswin"
    presets = {
        "nano": {
            "hidden_sizes": (24, 48, 96, 192),
            "depths": (1, 2, 4, 1),
            "num_heads": (2, 4, 8, 16),
            "drop_path_rate": 0.0,
            "decoder_hidden_size": 64,
            "auxiliary_hidden_size": 32,
        },
        "tiny": {},
        "small": {"depths": (2, 4, 32, 2), "drop_path_rate": 0.4},
        "base": {
            "hidden_sizes": (96, 192, 384, 768),
            "depths": (2, 4, 32, 2),
            "num_heads": (4, 8, 16, 32),
            "drop_path_rate": 0.6,
        },
    }

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (1, 2, 21, 1)
    num_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    stripe_widths: list[int] | tuple[int, ...] = (1, 2, 7, 0)
    stripe_padding: str = "masked"
    drop_path_rate: float | int = 0.3
    layer_norm_eps: float | int = 1e-5

    def validate_stages(self) -> None:
        super().validate_stages()
        if len(self.stripe_widths) != len(self.depths):
            raise ValueError(
                f"stripe_widths has {len(self.stripe_widths)} entries for {len(self.depths)} stages. "
                "Give one entry per stage, 0 for a window over the whole grid."
            )
        self.check_stripes(self.stripe_widths)

    def validate_stripe_padding(self) -> None:
        if self.stripe_padding not in ("masked", "official"):
            raise ValueError(f"stripe_padding is '{self.stripe_padding}'. Use 'masked' or 'official'.")


__all__ = ["CswinConfig"]
