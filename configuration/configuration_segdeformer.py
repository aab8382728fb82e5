"""SegDeformer: internal and external context mining on any backbone (Shi et al., "A Transformer-Based Decoder
for Semantic Segmentation with Multi-level Context Mining", ECCV 2022)."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, SegformerConfig

from .backbone_configs import backbone_from_dict, check_takes_images
from .decoding import DecodingConfig
from .field_rules import checked
from .foreign_backbones import BackboneChannels

NECKS = ("conv", "linear", "segformer", "upernet", "semantic_fpn")
FLAT_NECKS = ("conv", "linear", "segformer")  # these take feature maps of a single stride
EXTERNAL_TOKENS = ("learned", "momentum")

MIT_WIDE = {"model_type": "segformer", "hidden_sizes": [64, 128, 320, 512]}
DEIT = {"model_type": "timm_backbone", "out_indices": [2, 5, 8, 11]}
SWIN = {"model_type": "swin", "window_size": 7, "drop_path_rate": 0.3}


@checked
class SegDeformerConfig(BackboneChannels, DecodingConfig):
    """Configuration of any backbone with the SegDeformer decoder, or with another decoder for comparison.

    Besides the fields of `DecodingConfig`:

    backbone_config: Configuration of one of our backbones, of any backbone in transformers, of SegFormer's
        encoder (size B0 is the default), of a backbone that you registered with AutoBackbone, or
        `TimmBackboneConfig(backbone=NAME)` for timm; or a dictionary with `model_type` and fields. It
        describes the architecture only: weights are random until loaded.
    decoder: "segdeformer", or another decoder on the same backbone: "upernet", "semantic_fpn", or "unet", whose
        logits have full resolution. The channels of "unet" double with each coarser level, from
        `decoder_hidden_size` (64 by default) at the finest feature map.
    neck: Module that fuses the feature maps before context mining. "conv" is the authors' code (1x1
        convolution, batch norm, ReLU); "linear" is eq. 1 of the paper, with eq. 5 to 7 implemented literally;
        "segformer" is the all-MLP decoder of SegFormer checkpoints; "upernet" and "semantic_fpn" are those of
        section 3.4.
    use_internal_context: Whether to mine internal context (Table 6).
    use_external_context: Whether to mine external context (Table 6).
    internal_num_heads: Attention heads of internal context mining (Table 4).
    internal_depth: Number of layers of internal context mining (Table 4).
    internal_mlp: Whether each layer of internal context mining has an MLP (Table 4).
    decouple_external_tokens: Whether class prediction and features have separate external tokens (eq. 10).
    use_external_attention: Whether X_inter attends to the mid-level features; False adds these directly
        (Table 5 without Y_exter).
    external_tokens: "learned", or "momentum" for moving averages of the features of each class, the
        comparison of Table 5.
    initializer_range: Standard deviation of newly initialized linear weights; convolutions
        with batch norm use He initialization.
    """

    model_type = "segdeformer"
    sub_configs = {"backbone_config": AutoConfig}
    presets = {
        "nano": {
            "backbone_config": {
                "model_type": "segformer",
                "hidden_sizes": [16, 32, 64, 128],
                "num_attention_heads": [1, 2, 4, 8],
                "depths": [1, 1, 1, 1],
                "drop_path_rate": 0.0,
            },
            "decoder_hidden_size": 64,
        },
        "mit_b0": {"backbone_config": {"model_type": "segformer"}},
        "mit_b1": {"backbone_config": MIT_WIDE},
        "mit_b2": {"backbone_config": {**MIT_WIDE, "depths": [3, 4, 6, 3]}},
        "mit_b5": {"backbone_config": {**MIT_WIDE, "depths": [3, 6, 40, 3]}},
        "deit_small": {
            "backbone_config": {**DEIT, "backbone": "deit_small_patch16_224"},
            "decoder_hidden_size": 512,
        },
        "deit_base": {
            "backbone_config": {**DEIT, "backbone": "deit_base_patch16_224"},
            "decoder_hidden_size": 512,
        },
        "swin_small": {
            "backbone_config": {**SWIN, "embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
            "decoder_hidden_size": 512,
        },
        "swin_large": {
            "backbone_config": {
                **SWIN, "window_size": 12, "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]
            },
            "decoder_hidden_size": 512,
        },
    }  # fmt: skip

    backbone_config: dict | PreTrainedConfig | None = None
    decoder: str = "segdeformer"
    neck: str = "conv"
    use_internal_context: bool = True
    use_external_context: bool = True
    internal_num_heads: int = 1
    internal_depth: int = 1
    internal_mlp: bool = False
    decouple_external_tokens: bool = True
    use_external_attention: bool = True
    external_tokens: str = "learned"
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = SegformerConfig()
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_from_dict(
                self.backbone_config, is_stored=kwargs.get("_is_stored", False)
            )
        check_takes_images(self.backbone_config)
        self.num_channels = kwargs.pop("num_channels", self.num_channels)
        super().__post_init__(**kwargs)

    @property
    def flat_maps(self) -> str:
        """How the feature maps of a plain vision transformer are used: "keep", unchanged, or "pyramid"."""
        return "keep" if self.decoder == "segdeformer" and self.neck in FLAT_NECKS else "pyramid"

    def context_mining(self) -> dict[str, Any]:
        """All options of the decoder, named as in `ContextMining`."""
        return {
            **super().context_mining(),
            "neck": self.neck,
            "num_heads": self.internal_num_heads,
            "internal_depth": self.internal_depth,
            "internal_mlp": self.internal_mlp,
            "use_internal": self.use_internal_context,
            "use_external": self.use_external_context,
            "decouple_tokens": self.decouple_external_tokens,
            "use_external_attention": self.use_external_attention,
            "external_tokens": self.external_tokens,
        }

    def validate_mining(self) -> None:
        for name, known in (("neck", NECKS), ("external_tokens", EXTERNAL_TOKENS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is '{getattr(self, name)}'. Use one of {', '.join(known)}.")
        if self.decoder_hidden_size % self.internal_num_heads:
            raise ValueError(
                f"{self.internal_num_heads} heads do not divide decoder_hidden_size {self.decoder_hidden_size}. "
                "Change internal_num_heads."
            )


__all__ = ["SegDeformerConfig"]
