"""MAFormer: local windows and a learned global branch, fused with attention (Wang et al., "MAFormer: A
Transformer Network with Multi-scale Attention Fusion for Visual Recognition", arXiv 2209.01620)."""

from .checked_config import choose
from .field_rules import checked
from .staged import StagedConfig

BLOCK_CHOICES = {
    "local_attention": ("cross_shaped", "shifted_window"),
    "global_branch": ("gld", "conv", "none"),
    "fusion": ("maf", "local_enhanced"),
}
PAPER_SIZES = {"hidden_sizes": (64, 128, 320, 512), "num_heads": (2, 4, 10, 16)}


@checked
class MaformerConfig(StagedConfig):
    """Configuration of the MAFormer backbone, classifier and segmenter.

    The defaults are the paper's S with Semantic FPN. The authors published neither code nor weights. Where
    the paper is ambiguous, our choices reproduce its numbers of parameters and multiply-adds (MACs) for B and
    L. The numbers for S are inconsistent with those for B: with the printed depths (3, 5, 8, 3), S has 23.0M
    parameters and 5.1G MACs, where the paper reports 23M and 4.5G; depths (2, 4, 8, 3) give both numbers.

    Besides the fields of `StagedConfig`:

    hidden_sizes: Channels of each stage.
    stripe_widths: Width of the stripes of each MAF stage, in patches of the stage; the stages after these are
        plain ViT stages.
    local_attention: Attention of the local branch: "cross_shaped", or the ablation "shifted_window".
    window_size: Side of the shifted windows and of those of upsampling "nonlocal", in patches of the stage.
    global_branch: "gld" is Global Learning with Down-sampling, implemented as a fully connected layer over
        the feature map averaged to a reference grid (on the full feature map, as printed, it would have many
        times the parameters of the model). "conv" is the ablation with a convolution; "none" removes the
        branch, the fusion and its MLP.
    fusion: "maf" is multi-scale attention fusion (Fig. 2c). With "local_enhanced" (Fig. 2b), the global
        branch reads the output of the local branch instead of the input of the block.
    gld_grid_size: Side of the reference grid.
    gld_ratio: The paper's N, the side of the grid of global tokens over that of the reference grid: 14 and
        0.5 give 7 x 7 tokens.
    use_token_labels: Whether the classifier has a second head, which is trained on a label for each token and
        also votes.
    token_label_loss_weight: Weight of that head's loss: 0.5 in LV-ViT, 1.0 in the recipe that MAFormer
        follows.
    """

    model_type = "maformer"
    presets = {
        "nano": {
            "hidden_sizes": (32, 64, 128, 192),
            "depths": (2, 2, 3, 2),
            "num_heads": (2, 4, 8, 12),
            "drop_path_rate": 0.0,
            "decoder_hidden_size": 64,
            "auxiliary_hidden_size": 32,
        },
        "small": {**PAPER_SIZES, "depths": (3, 5, 8, 3), "drop_path_rate": 0.1},
        "base": {**PAPER_SIZES, "depths": (3, 8, 20, 7), "drop_path_rate": 0.3},
        "large": {
            "hidden_sizes": (128, 192, 448, 640),
            "depths": (3, 8, 24, 7),
            "num_heads": (4, 6, 14, 20),
            "drop_path_rate": 0.4,
        },
    }

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    depths: list[int] | tuple[int, ...] = (3, 5, 8, 3)
    num_heads: list[int] | tuple[int, ...] = (2, 4, 10, 16)
    stripe_widths: list[int] | tuple[int, ...] = (1, 2)
    local_attention: str = "cross_shaped"
    global_branch: str = "gld"
    fusion: str = "maf"
    gld_grid_size: int = 14
    gld_ratio: float | int = 0.5
    use_token_labels: bool = False
    token_label_loss_weight: float | int = 0.5
    decoder: str = "semantic_fpn"

    def validate_stages(self) -> None:
        super().validate_stages()
        if len(self.stripe_widths) > len(self.depths) or not all(self.stripe_widths):
            raise ValueError(
                f"stripe_widths is {tuple(self.stripe_widths)} for {len(self.depths)} stages. "
                "Give a width of 1 or more for each MAF stage; the stages after them attend to the whole grid."
            )
        if self.local_attention == "cross_shaped":
            self.check_stripes(self.stripe_widths)

    def validate_blocks(self) -> None:
        for field, names in BLOCK_CHOICES.items():
            choose(field, getattr(self, field), dict.fromkeys(names))
        if self.gld_grid_size * self.gld_ratio < 1:
            raise ValueError(
                f"gld_grid_size is {self.gld_grid_size} and gld_ratio {self.gld_ratio}; at least one global token "
                "is required. Increase gld_ratio or gld_grid_size."
            )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of the encoder, with those of the global branch."""
        blocks = sum(self.depths[: len(self.stripe_widths)])
        return super().encoder_weights() + blocks * self.gld_grid_size**4 * self.gld_ratio**2


__all__ = ["MaformerConfig"]
