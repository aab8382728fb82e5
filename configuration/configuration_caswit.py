"""CASWiT: two Swin encoders, of a sharp crop and of its wide context, joined by cross-attention at every stage
(Carreaud et al., "Context-Aware Semantic Segmentation via Stage-Wise Attention", arXiv 2601.11310).

Built from the abstract; no reference numbers exist.
"""

from typing import Any

from .checked_config import choose
from .field_rules import checked
from .staged import StagedConfig

GATES = ("channel", "scalar", "dynamic", "none")


@checked
class CaswitConfig(StagedConfig):
    """Configuration of the CASWiT segmenter and of its masked pretraining.

    Built from the abstract of the paper, whose text and code we have not read; no reference numbers exist. Swin-B
    with windows of 12, crops of 512 pixels and a context ratio of 2 are what the authors name; all other defaults
    are ours.

    Besides the fields of `StagedConfig`:

    embed_dim: Channels of the first stage; each further stage doubles them.
    window_size: Side of an attention window, in patches of the stage; also used by the decoder "unet".
    context_ratio: Side of the context over that of the local crop, a whole number. The context has the same
        center and is reduced to the size of the crop.
    crop_size: Side of the local crops into which an image without given context is cut, in pixels.
    gate: What the attended context is multiplied by before it is added to the local features: "channel", a learned
        value per channel, and "scalar", one learned value, both 0 at the start, so that training begins at the
        local Swin alone; "dynamic", a sigmoid of a linear map of local and attended features; or "none".
    fusion_mlp_ratio: Hidden channels of the MLP after each cross-attention over its input channels. It is gated like
        the attention. 0 removes it.
    fusion_feeds_next_stage: Whether the next local stage continues from the fused features. If not, only the decoder
        reads them.
    tie_encoders: Whether one encoder with one set of weights serves both scales.
    kv_pooling: Side of the blocks of context positions that are averaged into one key and value, for each stage;
        None is 1 for every stage.
    context_loss_weight: Weight of the loss of the context branch, whose own decoder is trained on labels of the whole
        context. 0 removes this decoder. It is never used at inference.
    """

    model_type = "caswit"
    width_field = "embed_dim"
    presets = {
        "nano": {
            "embed_dim": 32,
            "depths": (2, 2, 2, 2),
            "num_heads": (1, 2, 4, 8),
            "window_size": 4,
            "drop_path_rate": 0.0,
            "decoder_hidden_size": 64,
            "auxiliary_hidden_size": 32,
        },
        "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
        "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
        "base": {},
    }

    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 12
    drop_path_rate: float | int = 0.3
    layer_norm_eps: float | int = 1e-5
    context_ratio: int = 2
    crop_size: int = 512
    gate: str = "channel"
    fusion_mlp_ratio: float | int = 4.0
    fusion_feeds_next_stage: bool = True
    tie_encoders: bool = False
    kv_pooling: list[int] | tuple[int, ...] | None = None
    context_loss_weight: float | int = 0.4

    def __post_init__(self, **kwargs: Any) -> None:
        if self.kv_pooling is None:
            self.kv_pooling = (1,) * len(self.depths)
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage for stage in range(self.num_layers)]

    @property
    def fused_stages(self) -> list[int]:
        """Indices of the stages that read the context, from 0: those whose output a stage or the decoder uses."""
        if self.fusion_feeds_next_stage:
            return list(range(self.num_backbone_stages))
        return [stage - 1 for stage in self.out_stages if stage]

    def upsampling_heads(self, stage: int) -> int:
        """Attention heads of the upsampling to a stage: those of the stage itself, as in GLAM-Swin.

        Args:
            stage: Index of the stage, from 0.

        Returns:
            The number of heads.
        """
        return self.num_heads[stage]

    def validate_fusion(self) -> None:
        choose("gate", self.gate, dict.fromkeys(GATES))
        if len(self.kv_pooling) != self.num_layers:
            raise ValueError(
                f"kv_pooling has {len(self.kv_pooling)} entries for {self.num_layers} stages. Give one entry per stage."
            )
        if self.decoder == "unet" and not self.fusion_feeds_next_stage:
            raise ValueError(
                "decoder is 'unet' and fusion_feeds_next_stage is False, but the skip connections of this decoder are "
                "the inputs of the stages, which then have no context. Change one of the two."
            )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of both encoders and their fusion."""
        fusion = sum((4 + 2 * self.fusion_mlp_ratio) * dim**2 for dim in self.hidden_sizes)
        return (1 if self.tie_encoders else 2) * super().encoder_weights() + fusion


__all__ = ["CaswitConfig"]
