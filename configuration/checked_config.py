"""What every configuration of this package shares: presets, and the check that its options are known."""

from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .options import choose, reject_unknown_options

# What transformers itself puts into a configuration's keywords or into config.json beside the fields.
TRANSFORMERS_KEYWORDS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "out_features",
    "out_indices",
    "output_attentions",
    "per_layer_config",
    "stage_names",
    "task_specific_params",
    "torch_dtype",
    "use_cache",
}


@strict
class CheckedConfig(PreTrainedConfig):
    """A configuration that knows published sizes by name and refuses options that it does not have."""

    presets = {}

    def __post_init__(self, **kwargs: Any) -> None:
        found = kwargs.get("model_type", self.model_type)
        if found != self.model_type:
            raise ValueError(
                f"this is the configuration of a '{found}' model, and {type(self).__name__} describes '{self.model_type}'. "
                "Load it with its own class, or convert it (from_swin for Swin checkpoints, contextseg-convert)."
            )
        public = {name: value for name, value in kwargs.items() if not name.startswith("_")}
        fields = {name for name in self.__dataclass_fields__ if not name.startswith("_")}
        reject_unknown_options(type(self).__name__, public, fields | TRANSFORMERS_KEYWORDS)
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size by name, with some fields changed."""
        return cls(**{**choose("preset", name, cls.presets), **overrides})
