"""What every configuration of this package shares: presets, and the check that its options are known."""

import logging
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

MISSPELT = 0.8  # similarity from which on an unknown name counts as a misspelt one

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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'window_size'?` when a known name is close, else the list of known names."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f", did you mean '{close[0]}'?" if close else f". Known: {', '.join(known)}."


def reject_unknown_options(owner: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises for the first option that `owner` does not have.

    transformers configurations keep any keyword, so that a typing error trains another model than the one meant.
    """
    known = set(known)
    for name in options:
        if name not in known:
            raise ValueError(f"{owner} has no option '{name}'{did_you_mean(name, known)}")


def choose(kind: str, name: str, table: Mapping[str, object]) -> object:
    """The entry of `table` called `name`, or an error that lists what there is.

    In a repository that was saved with its code, entries that its model does not use are `NotImplemented`.
    """
    if name not in table:
        raise ValueError(f"no {kind} '{name}'{did_you_mean(name, table)}")
    if table[name] is NotImplemented:
        held = " and ".join(f"'{key}'" for key, entry in table.items() if entry is not NotImplemented)
        raise ValueError(
            f"this repository holds the code of {kind} {held or 'None'} only, not of '{name}'. contextseg has all of them: "
            "install it, and `import contextseg` in place of trust_remote_code=True."
        )
    return table[name]


@strict
class CheckedConfig(PreTrainedConfig):
    """A configuration that knows published sizes by name and refuses options that it does not have.

    Options given in code are checked: a misspelt one fails with a suggestion. Other keys of a file are kept, because other
    tools write notes into `config.json`.
    """

    presets = {}

    def __post_init__(self, **kwargs: Any) -> None:
        found = kwargs.get("model_type", self.model_type)
        if found != self.model_type:
            raise ValueError(
                f"this is the configuration of a '{found}' model, and {type(self).__name__} describes '{self.model_type}'. "
                "Load it with its own class, or convert it (from_swin for Swin checkpoints, contextseg-convert)."
            )
        if kwargs.pop("_is_stored", False):
            kwargs = {name: value for name, value in kwargs.items() if not is_computed(type(self), name)}
        else:
            reject_unknown_options(type(self).__name__, public(kwargs), self.known_options())
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}

    @classmethod
    def known_options(cls) -> set[str]:
        """Names of the fields, and of what transformers reads besides."""
        return public(cls.__dataclass_fields__) | TRANSFORMERS_KEYWORDS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a file holds, with these fields changed.

        Keys of the file that are not options are kept. A keyword that resembles an option fails; others are left to the
        caller, since transformers passes on options of models and processors as well.
        """
        known = cls.known_options() | config_dict.keys()
        reject_unknown_options(cls.__name__, resembling(kwargs, known), known)
        for name in resembling(config_dict, cls.known_options()):
            hint = did_you_mean(name, cls.known_options())
            logger.warning(
                "the file has '%s', which is not an option of %s%s It has no effect.",
                name,
                cls.__name__,
                hint,
            )
        return super().from_dict({**config_dict, "_is_stored": True}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """The configuration that a file holds."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size by name, with some fields changed."""
        return cls(**{**choose("preset", name, cls.presets), **overrides})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:  # noqa: ARG002
        """This configuration: there is no text. transformers would take the field `decoder`, a name, for a configuration."""
        return self


def public(options: Iterable[str]) -> set[str]:
    """The names that do not begin with an underscore, which mark transformers' own."""
    return {name for name in options if not name.startswith("_")}


def resembling(options: Iterable[str], known: Iterable[str]) -> set[str]:
    """The unknown names that are probably a misspelt known one."""
    return {
        name for name in public(options) - set(known) if get_close_matches(name, known, n=1, cutoff=MISSPELT)
    }


def is_computed(config_class: type, name: str) -> bool:
    """Whether a name is that of a property which cannot be set."""
    attribute = getattr(config_class, name, None)
    return isinstance(attribute, property) and attribute.fset is None
