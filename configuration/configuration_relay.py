"""Relay tokens: a sharp local crop and its wide surroundings, linked by a few tokens (Perron et al., "Adapting
Vision Transformers to Ultra-High Resolution Semantic Segmentation with Relay Tokens", TMLR 2026)."""

from typing import Any

from .decoding import DecodingConfig
from .field_rules import checked
from .staged import StageRules

ENCODER_TYPES = ("swinv2", "vit")
# The authors' names of the two rules, and ours.
RELAY_UPDATES = {"sequential": "sequential", "mean": "mean", "zigzag": "sequential", "merge": "mean"}


@checked
class RelayConfig(StageRules, DecodingConfig):
    """Configuration of the segmenter with relay tokens.

    The defaults are the authors' SwinV2-S with their one-step decoder.

    Besides the fields of `DecodingConfig`:

    encoder_type: "swinv2" (stages of shifted windows), or "vit" (plain, one stage).
    num_channels: Channels of the image.
    patch_size: Side of a patch in pixels.
    embed_dim: Channels of the first stage; each further stage doubles them.
    depths: Number of blocks of each stage; one entry for "vit".
    num_heads: Attention heads of each stage.
    window_size: Side of an attention window of "swinv2", in patches of the stage.
    pretrained_window_sizes: Window side of each stage of "swinv2" in pretraining, which scales its position
        bias; None if it was `window_size`.
    mlp_ratio: Hidden channels of an MLP over its input channels.
    drop_path_rate: Stochastic depth rate of the last block; it increases linearly from 0 at the first.
    initializer_range: Standard deviation of newly initialized linear weights.
    layer_norm_eps: Epsilon of all layer norms.
    num_relay_tokens: Tokens handed between the two crops; 0 leaves them independent.
    relay_update: How a block updates the relay tokens. "sequential" (the authors' "zigzag", and the paper):
        first with the context crop, then with the local crop. "mean" (their "merge", and their published ViT
        and SwinV2): with each crop on its own, then averaged.
    context_ratio: Side of the context crop over that of the local crop; both have the same number of pixels.
    crop_size: Side of the local crop in pixels, into which larger images are cut.
    share_patch_embedding: Whether both crops have the same patch embedding and position table.
    share_blocks: Whether both crops have the same blocks; False is possible for "vit" only.
    global_loss_weight: Weight of the loss on the logits of the context crop, within the local crop.
    consistency_weight: Weight of the loss between the logits of the two crops, within the local crop.
    detach_consistency: Whether that loss leaves the local logits as they are.
    """

    model_type = "relay"
    width_field = "embed_dim"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    presets = {
        "nano": {
            "embed_dim": 32,
            "depths": (2, 2, 2, 2),
            "num_heads": (1, 2, 4, 8),
            "window_size": 4,
            "drop_path_rate": 0.0,
            "crop_size": 128,
            "decoder": "semantic_fpn",  # at a stride of 32, one step takes more weights than the encoder
            "decoder_hidden_size": 64,
        },
        "swinv2_small": {},
        "vit_small": {
            "encoder_type": "vit",
            "patch_size": 16,
            "embed_dim": 384,
            "depths": (12,),
            "num_heads": (6,),
            "drop_path_rate": 0.0,
            "layer_norm_eps": 1e-6,
        },
    }

    encoder_type: str = "swinv2"
    num_channels: int = 3
    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 8
    pretrained_window_sizes: list[int] | tuple[int, ...] | None = None
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.1
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5
    num_relay_tokens: int = 4
    relay_update: str = "sequential"
    context_ratio: int = 4
    crop_size: int = 256
    share_patch_embedding: bool = False
    share_blocks: bool = True
    global_loss_weight: float | int = 0.1
    consistency_weight: float | int = 0.1
    detach_consistency: bool = False
    decoder: str = "one_step"

    def __post_init__(self, **kwargs: Any) -> None:
        self.relay_update = RELAY_UPDATES.get(self.relay_update, self.relay_update)
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage for stage in range(self.num_layers)]

    def validate_encoder_type(self) -> None:
        if self.encoder_type not in ENCODER_TYPES:
            raise ValueError(f"encoder_type is '{self.encoder_type}'. Use one of {', '.join(ENCODER_TYPES)}.")
        if self.encoder_type == "vit" and len(self.depths) != 1:
            raise ValueError(
                f"depths has {len(self.depths)} entries, but encoder_type 'vit' has one stage. Give one entry."
            )
        if self.encoder_type == "vit" and not self.depths[0]:
            raise ValueError("depths is 0, which leaves the encoder 'vit' without blocks. Use 1 or more.")
        if self.encoder_type == "swinv2" and not self.share_blocks:
            raise ValueError(
                "share_blocks is False, which encoder_type 'swinv2' does not have: its relay tokens are widened once for "
                "both crops. Use True, or encoder_type 'vit'."
            )

    def validate_pretrained_window_sizes(self) -> None:
        sizes = self.pretrained_window_sizes
        if sizes is not None and len(sizes) != len(self.depths):
            raise ValueError(
                f"pretrained_window_sizes has {len(sizes)} entries for {len(self.depths)} stages. "
                "Give one entry per stage, or None."
            )

    def validate_relay_update(self) -> None:
        if self.relay_update not in RELAY_UPDATES:
            raise ValueError(
                f"relay_update is '{self.relay_update}'. Use 'sequential' or 'mean' (the authors' 'zigzag' and 'merge')."
            )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of the encoder, with the position tables of "vit"."""
        blocks = super().encoder_weights() * (1 if self.share_blocks else 2)
        rows = (self.crop_size // self.patch_size) ** 2 if self.encoder_type == "vit" else 0
        return blocks + (1 if self.share_patch_embedding else 2) * rows * self.embed_dim


__all__ = ["RelayConfig"]
