"""GLAM in a windowed encoder of transformers or timm (Themyr et al., "Full Contextual Attention for Multi-resolution
Transformers in Semantic Segmentation", WACV 2023)."""

from copy import deepcopy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, Swinv2Config

from .checked_config import CheckedConfig
from .configuration_glam_swin import GLOBAL_BLOCKS
from .field_rules import checked
from .foreign_backbones import BackboneChannels, foreign_backbone_config

# Encoders of this package, and what to do instead of adding tokens to them.
OWN_ENCODERS = {
    "glam": "It has global tokens already: set its num_global_tokens.",
    "glam_swin": "It has global tokens already: set its num_global_tokens.",
    "nnformer": "It has global tokens already: set its num_global_tokens.",
    "maformer": "It has a global branch of its own. Take GlamSwinConfig for global tokens.",
    "cswin": "It attends in stripes, not in windows. Take GlamSwinConfig for global tokens.",
}


@checked
class GlamConfig(BackboneChannels, CheckedConfig):
    """Configuration of a windowed encoder with GLAM's global tokens, for use as a backbone.

    backbone_config: Configuration of the encoder: `Swinv2Config` (the default), `SwinConfig`, or
        `TimmBackboneConfig(backbone=NAME)` for Twins-SVT, MaxViT and NesT of timm; or a dictionary with `model_type` and
        fields. Its `out_indices` select the stages; by default all are used.
    num_global_tokens: Global tokens per window (the paper's N_g); 0 is the encoder itself.
    global_block: What a block does with its global tokens: "bare", attention alone, as in the authors' code for images;
        "half", a residual and the MLP of the patches after W-MSA; or "transformer", two blocks with norms, residuals
        and MLPs, as in the text of the paper and the authors' latest code for volumes.
    stages: Stages with global tokens: "all", or a list of indices, 0 for the finest.
    """

    model_type = "glam"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    num_global_tokens: int = 10
    global_block: str = "bare"
    stages: str | list[int] | tuple[int, ...] = "all"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = Swinv2Config()
        if isinstance(self.backbone_config, dict):
            refuse_own_encoders(self.backbone_config.get("model_type"))
            self.backbone_config = foreign_backbone_config(self.backbone_config)
        refuse_own_encoders(self.backbone_config.model_type)
        chosen = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        for name, value in chosen.items():
            if value is not None:
                self.backbone_config = deepcopy(self.backbone_config)
                setattr(self.backbone_config, name, list(value))
        self.num_channels = kwargs.pop("num_channels", self.num_channels)
        super().__post_init__(**kwargs)

    @property
    def out_indices(self) -> list[int] | None:
        """Stages whose feature maps are used; a choice of the last one alone, the usual default, means all."""
        return getattr(self.backbone_config, "out_indices", None)

    @out_indices.setter
    def out_indices(self, indices: list[int] | tuple[int, ...]) -> None:
        self.backbone_config = deepcopy(self.backbone_config)  # the caller's stays as it is
        self.backbone_config.out_indices = list(indices)

    @property
    def initializer_range(self) -> float:
        """Standard deviation of newly initialized linear weights: that of the encoder."""
        return getattr(self.backbone_config, "initializer_range", 0.02)

    def validate_global_block(self) -> None:
        if self.global_block not in GLOBAL_BLOCKS:
            raise ValueError(f"global_block is '{self.global_block}'. Use one of {', '.join(GLOBAL_BLOCKS)}.")

    def validate_stages(self) -> None:
        if self.stages != "all" and (isinstance(self.stages, str) or not self.stages or min(self.stages) < 0):
            raise ValueError(
                f"stages is {self.stages!r}. Use 'all', or a list of indices such as [2, 3], 0 for the finest."
            )


def refuse_own_encoders(model_type: str | None) -> None:
    """Raises ValueError for an encoder of this package."""
    if model_type in OWN_ENCODERS:
        raise ValueError(f"'{model_type}' cannot be the encoder of GlamConfig. {OWN_ENCODERS[model_type]}")


__all__ = ["GlamConfig"]
