"""nnFormer (Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023), and
with global tokens GLAM-nnFormer (Themyr et al., WACV 2023)."""

from typing import Any, Self

from transformers.backbone_utils import BackboneConfigMixin

from .decoding import LossConfig
from .field_rules import checked
from .staged import OutFeatures, StageRules
from .volume_stages import VolumeStages

Sides = int | list[int] | tuple[int, ...]  # the same along all axes, or one per axis
CHOICES = {
    "variant": ("2022", "2021"),
    "global_block": ("transformer", "half", "bare"),
    "global_position_embedding": ("none", "table", "sincos"),
    "relative_positions": ("clean", "official"),
}

PRESETS = {
    "synapse": {},
    "acdc": {
        "crop_size": (14, 160, 160),
        "patch_size": (1, 4, 4),
        "embed_dim": 96,
        "num_heads": (3, 6, 12, 24),
        "window_size": ((3, 5, 5), (3, 5, 5), (7, 10, 10), (3, 5, 5)),
        "downsample_strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        "deep_supervision": False,
    },
    "tumor": {
        "num_channels": 4,
        "crop_size": (128, 128, 128),
        "patch_size": (4, 4, 4),
        "embed_dim": 96,
        "num_heads": (3, 6, 12, 24),
        "decoder_num_heads": (6, 12, 24),
        "deep_supervision": False,
    },
    "nano": {
        "crop_size": (48, 64, 48),
        "embed_dim": 24,
        "num_heads": (1, 2, 4, 8),
        "window_size": (4, 4, 4, 4),
        "drop_path_rate": 0.0,
    },
}
PRESETS_2021 = {"synapse": {"window_size": (4, 4, 4, 4)}}  # what the first version does otherwise


@checked
class NnFormerConfig(VolumeStages, OutFeatures, StageRules, BackboneConfigMixin, LossConfig):
    """Configuration of nnFormer, for volumes (slices, rows, columns).

    The defaults are the authors' network for Synapse. All sizes with three entries follow the order of the axes.

    Besides the loss fields of `LossConfig`:

    num_channels: Channels of the volume.
    crop_size: Size of training crops and inference windows, in voxels.
    patch_size: Size of the first patches in voxels, each 1, 2 or 4.
    embed_dim: Channels of the first stage; each further stage doubles them.
    depths: Number of blocks of each stage. The decoder has as many as the encoder at the same resolution.
    num_heads: Attention heads of each stage.
    decoder_num_heads: Attention heads of the decoder's stages, fine to coarse; None takes those of the encoder.
    window_size: Windows of each stage in its cells, one number or three.
    downsample_strides: Reduction of the grid after each stage but the last, one number or three.
    variant: "2022", the current version with skip attention, or "2021", the first one, which adds the skip connections.
    num_global_tokens: GLAM's global tokens per window; 0 is nnFormer, 1 with variant "2021" GLAM-nnFormer.
    global_block: What a block does with its global tokens: "transformer", two blocks with norms, residuals and MLPs, as
        in the text of GLAM's paper and the latest code of its authors; "half", without them around the attention
        across windows, the best guess for the code behind the published numbers; or "bare", attention alone, as in 2-D.
    global_clamp: Bound of the global tokens after the attention across windows, 1 in some code of the authors; None
        for no bound. Not with "transformer".
    global_position_embedding: Position encoding of the windows in that attention: "none", "table" or "sincos" as in
        `GlamSwinConfig`. Not with "transformer".
    global_position_rows: Rows of each stage's table, or None for the authors' sizes.
    relative_positions: "clean", or "official" for converted weights, whose index gives several offsets one row.
    fixed_grid: Whether windows follow from `crop_size` as in the authors' code, for converted weights: where a window
        is not smaller than the shortest side of the grid, that side is the window, and windows are not shifted.
    mask_shifted_windows: Whether attention in shifted windows is masked where they wrap around. False only for
        converted weights of the ACDC network.
    pad_last_downsample: Whether the last downsampling of variant "2022" pads along the slices. False only for
        converted weights of the ACDC network.
    deep_supervision: Whether the coarser stages of the decoder have heads of their own in training.
    mlp_ratio: Hidden channels of an MLP over its input channels.
    drop_path_rate: Stochastic depth rate of the last block of the encoder, and of the last of the decoder; both
        increase linearly from 0.
    initializer_range: Standard deviation of newly initialized position tables. Linear layers and convolutions are
        initialized as PyTorch does, as in the authors' code.
    layer_norm_eps: Epsilon of all layer norms.
    out_features, out_indices: Stages whose feature maps the backbone returns, by name ("stem", "stage1", ...) or index;
        all stages by default. Stages after the last of these are not built.
    """

    model_type = "nnformer"
    width_field = "embed_dim"
    decoder = "nnformer"  # the only one; not an option
    use_auxiliary_head = False
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    presets = PRESETS

    num_channels: int = 1
    crop_size: list[int] | tuple[int, ...] = (64, 128, 128)
    patch_size: list[int] | tuple[int, ...] = (2, 4, 4)
    embed_dim: int = 192
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_heads: list[int] | tuple[int, ...] = (6, 12, 24, 48)
    decoder_num_heads: list[int] | tuple[int, ...] | None = None
    window_size: list[Sides] | tuple[Sides, ...] = (4, 4, 8, 4)
    downsample_strides: list[Sides] | tuple[Sides, ...] | None = None
    variant: str = "2022"
    num_global_tokens: int = 0
    global_block: str = "transformer"
    global_clamp: float | int | None = None
    global_position_embedding: str = "none"
    global_position_rows: list[int] | tuple[int, ...] | None = None
    relative_positions: str = "clean"
    fixed_grid: bool = False
    mask_shifted_windows: bool = True
    pad_last_downsample: bool = True
    deep_supervision: bool = True
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5
    loss: str = "cross_entropy+foreground_dice"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_num_heads is None:
            self.decoder_num_heads = self.num_heads[:-1]
        if self.downsample_strides is None:
            self.downsample_strides = (2,) * (len(self.depths) - 1)
        super().__post_init__(**self.settle_out_features(kwargs))

    @classmethod
    def preset(cls, name: str, variant: str = "2022", **overrides: Any) -> Self:
        """Builds the configuration of a published size.

        Args:
            name: "synapse", "acdc" or "tumor", the authors' networks, or "nano", which trains on a CPU.
            variant: "2022", or "2021" for the first published version.
            **overrides: Fields to change. With an option of global tokens, such as global_block, `num_global_tokens` is
                1 unless it is given.

        Raises:
            ValueError: If there is no such preset or field.
        """
        first = PRESETS_2021.get(name, {}) if variant == "2021" else {}
        asks_for_tokens = any(field.startswith("global_") for field in overrides)
        tokens = {"num_global_tokens": int(asks_for_tokens)}
        return super().preset(name, **{**first, **tokens, "variant": variant, **overrides})

    def validate_choices(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is '{getattr(self, name)}'. Use one of {', '.join(known)}.")
        if self.global_block == "transformer" and (
            self.global_clamp is not None or self.global_position_embedding != "none"
        ):
            raise ValueError(
                "global_block 'transformer' takes neither global_clamp nor global_position_embedding. Leave both out, or "
                "use 'half' or 'bare'."
            )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of the encoder and the decoder."""
        per_block = 4 + 2 * self.mlp_ratio
        blocks = sum(
            2 * depth * per_block * dim**2 for dim, depth in zip(self.hidden_sizes, self.depths, strict=True)
        )
        sampling = sum((2 * 27 + 8 * 2) * dim**2 for dim in self.hidden_sizes[:-1])
        return blocks + sampling + 27 * self.embed_dim * (self.embed_dim + self.num_channels)


__all__ = ["NnFormerConfig"]
