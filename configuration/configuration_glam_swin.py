"""GLAM-Swin: Swin windows with global tokens (Themyr et al., "Full Contextual Attention for Multi-resolution
Transformers in Semantic Segmentation", WACV 2023)."""

from .axes import Sides, StridesPerAxis, along_axes
from .field_rules import checked
from .staged import StagedConfig

GLOBAL_POSITION_EMBEDDINGS = ("sincos", "table", "none")
GLOBAL_BLOCKS = ("bare", "half", "transformer")


class GlobalTokenRules:
    """Rules of the fields of global tokens."""

    def validate_global_tokens(self) -> None:
        if self.global_position_embedding not in GLOBAL_POSITION_EMBEDDINGS:
            raise ValueError(
                f"global_position_embedding is '{self.global_position_embedding}'. "
                f"Use one of {', '.join(GLOBAL_POSITION_EMBEDDINGS)}."
            )
        if self.global_position_rows is not None and len(self.global_position_rows) != len(self.depths):
            raise ValueError(
                f"global_position_rows has {len(self.global_position_rows)} entries for {len(self.depths)} stages. "
                "Give one entry per stage, or None for the authors' sizes."
            )

    def validate_global_block(self) -> None:
        if self.global_block not in GLOBAL_BLOCKS:
            raise ValueError(f"global_block is '{self.global_block}'. Use one of {', '.join(GLOBAL_BLOCKS)}.")
        if self.global_block == "transformer" and (
            self.global_clamp is not None or self.global_position_embedding != "none"
        ):
            raise ValueError(
                "global_block 'transformer' takes neither global_clamp nor global_position_embedding. Leave both out, or "
                "use 'half' or 'bare'."
            )


@checked
class GlamSwinConfig(GlobalTokenRules, StridesPerAxis, StagedConfig):
    """Configuration of the GLAM-Swin backbone, classifier and segmenter, for images or volumes.

    The defaults are the paper's Tiny size with UPerNet. A `patch_size` with three entries describes a network for volumes
    (slices, rows, columns): Swin-Unet in 3-D, with global tokens. Volumes need `decoder="unet"` with any `upsampling`; the
    other decoders, the auxiliary head, `pretrain_image_size` and masked image modeling are for images.

    Besides the fields of `StagedConfig`:

    embed_dim: Channels of the first stage; each further stage doubles them.
    patch_size: Side of a patch in pixels, or one side per axis.
    merge_strides: Patches that become one after each stage but the last, 1 or 2 along all axes or one number per axis;
        None merges 2 along every axis. Thick slices need 1 along the first axis of the first stages.
    window_size: Side of an attention window in patches of the stage, or one side per axis; also used by the decoder
        "unet".
    num_global_tokens: Global tokens per window (the paper's N_g); 0 is plain Swin.
    use_global_attention: False removes G-MSA, the ablation of Table 5 of the paper: global tokens stay within
        their window.
    global_position_embedding: Position encoding of the windows in G-MSA. "none" is the paper as printed, and
        did better than "sincos" in our experiments (benchmarks/camvid.md). "table" is the authors' code, a
        learned table of which each image reads the center rows; at the size of the training crops it scored
        higher there in a network of two stages, not in "nano", and lower at other sizes
        (benchmarks/glam_forms.md). "sincos" is ours: sine and cosine of
        the window's position plus a learned embedding of each token.
    global_position_rows: Rows of each stage's table, or None for the authors' sizes.
    global_block: What a block does with its global tokens: "bare", attention alone, as in the authors' code for images;
        "half", a residual and the MLP of the patches after W-MSA; or "transformer", two blocks with norms, residuals
        and MLPs, as in the text of the paper and the authors' latest code for volumes.
    global_clamp: Bound of the global tokens after G-MSA, 1 in some code of the authors; None for no bound. Not with
        "transformer".
    pretrain_image_size: Side of the pretraining images in pixels. If set, a stage whose grid for such an
        image is not larger than the window uses that grid as its window and never shifts it, as in the
        authors' U-Net code. None shifts the windows of every stage.
    """

    model_type = "glam_swin"
    width_field = "embed_dim"
    presets = {
        "nano": {
            "embed_dim": 32,
            "depths": (2, 2, 2, 2),
            "num_heads": (1, 2, 4, 8),
            "window_size": 4,
            "drop_path_rate": 0.0,
            "num_global_tokens": 4,
            "decoder_hidden_size": 64,
            "auxiliary_hidden_size": 32,
        },
        "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
        "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    }

    embed_dim: int = 96
    patch_size: Sides = 4
    merge_strides: list[Sides] | tuple[Sides, ...] | None = None
    window_size: Sides = 7
    drop_path_rate: float | int = 0.3
    num_global_tokens: int = 10
    use_global_attention: bool = True
    global_position_embedding: str = "none"
    global_position_rows: list[int] | tuple[int, ...] | None = None
    global_block: str = "bare"
    global_clamp: float | int | None = None
    pretrain_image_size: int | None = None
    layer_norm_eps: float | int = 1e-5

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage for stage in range(self.num_layers)]

    def validate_pretrain_image_size(self) -> None:
        size = self.pretrain_image_size
        if size is not None and self.has_square_strides and size < self.strides[-1]:
            raise ValueError(
                f"pretrain_image_size is {size}, which is less than one patch of the last stage. "
                f"Use {self.strides[-1]} or more, or None."
            )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of the encoder, with its position tables."""
        has_tables = self.global_position_embedding == "table"
        tables = sum(self.position_rows(stage) * dim for stage, dim in enumerate(self.hidden_sizes))
        return super().encoder_weights() + has_tables * tables

    def nominal_grid(self, stage: int) -> int | None:
        """Side of a stage's grid for images of `pretrain_image_size`, if it replaces the window.

        Args:
            stage: Index of the stage, from 0.

        Returns:
            The side in patches of the stage, or None if windows have `window_size`.
        """
        if self.pretrain_image_size is None:
            return None
        side = self.pretrain_image_size // self.strides[stage]
        return side if side <= max(along_axes(self.window_size, 2)) else None

    def stage_window(self, stage: int) -> tuple[int, ...]:
        """Sides of a stage's windows.

        Args:
            stage: Index of the stage, from 0.

        Returns:
            The sides in patches of the stage, one per axis.
        """
        return along_axes(self.nominal_grid(stage) or self.window_size, self.num_axes)

    def upsampling_heads(self, stage: int) -> int:
        """Attention heads of the upsampling to a stage: those of the stage itself, as in the authors' code.

        Args:
            stage: Index of the stage, from 0.

        Returns:
            The number of heads.
        """
        return self.num_heads[stage]

    def position_rows(self, stage: int) -> int:
        """Rows of a stage's table of position embeddings.

        Args:
            stage: Index of the stage, from 0.

        Returns:
            The entry of `global_position_rows`, or the authors' (45 * num_global_tokens / 2**stage)**2 for images, and
            for volumes (32 / window * num_global_tokens / 2**stage)**3.
        """
        if self.global_position_rows is not None:
            return self.global_position_rows[stage]
        windows = 45 if self.num_axes == 2 else 32 // max(self.stage_window(stage))
        return (windows * self.num_global_tokens // 2**stage) ** self.num_axes


__all__ = ["GlamSwinConfig"]
