"""The base class of all configurations: presets, and the rejection of unknown options."""

import logging
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Self

from transformers import PreTrainedConfig

from .field_rules import checked, own_fields
from .label_names import LABEL_OPTIONS, label_count, labels_in_file, labels_of
from .ranges import shown

logger = logging.getLogger(__name__)

MISSPELT = 0.8  # similarity from which on an unknown name counts as misspelled

# Keywords that transformers passes to configurations or writes to config.json in addition to the fields.
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
    """Ends a message with `, did you mean 'window_size'?` if a name is close, else with all names."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f", did you mean '{close[0]}'?" if close else f". Known: {', '.join(known)}."


def reject_unknown_options(owner: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first unknown option.

    transformers configurations keep any keyword, so a typo would silently train a different model.

    Args:
        owner: Name of the class or function, for the message.
        options: Names of the given options.
        known: Names of the known options.
    """
    known = set(known)
    for name in options:
        if name not in known:
            raise ValueError(f"{owner} has no option {shown(name)}{did_you_mean(name, known)}")


def choose(kind: str, name: str, table: Mapping[str, object]) -> object:
    """Returns `table[name]`.

    In a Hub repository with code, entries that its model does not use are `NotImplemented`.

    Args:
        kind: What the table holds, for the message.
        name: Key of the entry.
        table: Entries by name.

    Raises:
        ValueError: If there is no such entry, with the known names, or the repository does not contain its
            code.
    """
    if name not in table:
        raise ValueError(f"no {kind} {shown(name)}{did_you_mean(name, table)}")
    if table[name] is NotImplemented:
        held = " and ".join(f"'{key}'" for key, entry in table.items() if entry is not NotImplemented)
        raise ValueError(
            f"this repository contains the code of {kind} {held or 'None'} only, not of '{name}'. contextseg "
            "has all of them: install it, and use `import contextseg` instead of trust_remote_code=True."
        )
    return table[name]


@checked
class CheckedConfig(PreTrainedConfig):
    """A configuration with presets, the published sizes by name, that rejects unknown options.

    A misspelled option in code raises a ValueError with a suggestion. Unknown keys of a file are kept,
    because other tools add their own keys to `config.json`.
    """

    presets = {}

    def __post_init__(self, **kwargs: Any) -> None:
        found = kwargs.get("model_type", self.model_type)
        if found != self.model_type:
            raise ValueError(
                f"this is the configuration of a '{found}' model, but {type(self).__name__} describes "
                f"'{self.model_type}'. Load it with its own class, or convert it (from_swin for Swin "
                "checkpoints, contextseg-convert for others)."
            )
        is_stored = kwargs.pop("_is_stored", False)
        label2id = self._settle_labels(kwargs.get("num_labels"), is_stored)
        if is_stored:
            kwargs = {name: value for name, value in kwargs.items() if not is_computed(type(self), name)}
        else:
            reject_unknown_options(type(self).__name__, public(kwargs), self.known_options())
        super().__post_init__(**{name: value for name, value in kwargs.items() if name != "num_labels"})
        vars(self)["label2id"] = label2id

    def _settle_labels(self, num_labels: int | None, is_stored: bool) -> dict[str, int]:
        """Sets `id2label` in its one form and returns `label2id`, which transformers must not set meanwhile.

        In a file `id2label` decides, because people edit it and forget the other one.
        """
        given = self.id2label, self.label2id, num_labels
        if all(value is None for value in given):
            given = None, None, 2  # as in transformers
        try:
            names, ids = labels_of(*given)
        except ValueError as error:
            if not (is_stored and self.id2label):
                raise
            names, ids = labels_in_file(self.id2label)
            logger.warning("%s Only id2label of the configuration file is used.", error)
        vars(self).update(id2label=names, label2id=None)
        return ids

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field; `id2label` and `label2id` follow each other, once the configuration is built."""
        if name == "num_labels":
            label_count(value)
        if name in LABEL_OPTIONS and value is not None and vars(self).get("label2id") is not None:
            names, ids = labels_of(**{name: value})
            if name != "num_labels" or len(names) != self.num_labels:  # the same number keeps the names
                vars(self).update(id2label=names, label2id=ids)
        else:
            super().__setattr__(name, value)

    @classmethod
    def known_options(cls) -> set[str]:
        """Names of the fields, and of the keywords that transformers passes."""
        return public(cls.__dataclass_fields__) | TRANSFORMERS_KEYWORDS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the configuration from the contents of a file.

        Keys of the file that are not options are kept; a warning names those that look misspelled.

        Args:
            config_dict: Contents of `config.json`.
            **kwargs: Fields to change. Unknown keywords are left to the caller, because transformers also
                passes options of models and processors, unless they resemble an option.

        Raises:
            ValueError: If a keyword looks like a misspelled option, or labels are invalid.
        """
        labels = {name: kwargs.pop(name, None) for name in LABEL_OPTIONS}
        known = cls.known_options() | config_dict.keys()
        wrong = resembling(kwargs, known) | {name for name in kwargs if is_fixed(cls, name)} - known
        reject_unknown_options(cls.__name__, wrong, known)
        # Fields are set and checked together; transformers would set them one by one, each unaware of the others, but
        # joins a dictionary with that of the file.
        changed = {name for name in kwargs.keys() & own_fields(cls) if not isinstance(kwargs[name], dict)}
        config_dict = with_labels(config_dict, labels) | {name: kwargs.pop(name) for name in changed}
        for name in resembling(config_dict, cls.known_options()):
            hint = did_you_mean(name, cls.known_options())
            logger.warning(
                "the configuration file has '%s', which is not an option of %s%s It has no effect.",
                name,
                cls.__name__,
                hint,
            )
        return super().from_dict({**config_dict, "_is_stored": True}, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        content = super()._dict_from_json_file(json_file)
        if not isinstance(content, dict):
            raise ValueError(f"{json_file} is damaged: it does not hold a JSON object. Copy it again.")
        return content

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """Builds the configuration from the path of a JSON file."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Builds the configuration of a published size.

        Args:
            name: A key of `presets`.
            **overrides: Fields to change.

        Raises:
            ValueError: If there is no such preset or field.
        """
        return cls(**{**choose("preset", name, cls.presets), **overrides})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:  # noqa: ARG002
        """Returns this configuration; transformers would take the field `decoder`, a name, for one."""
        return self


def with_labels(config_dict: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """The contents of a file with other labels; the same number of classes keeps their names."""
    given = {name: value for name, value in labels.items() if value is not None}
    if not given or given == {"num_labels": len(config_dict.get("id2label") or (0, 1))}:
        return config_dict
    id2label, label2id = labels_of(**given)
    rest = {name: value for name, value in config_dict.items() if name not in LABEL_OPTIONS}
    return {**rest, "id2label": id2label, "label2id": label2id}


def public(options: Iterable[str]) -> set[str]:
    """The names without a leading underscore, which marks transformers' internal ones."""
    return {name for name in options if not name.startswith("_")}


def resembling(options: Iterable[str], known: Iterable[str]) -> set[str]:
    """The unknown names that are probably misspelled known ones."""
    return {
        name for name in public(options) - set(known) if get_close_matches(name, known, n=1, cutoff=MISSPELT)
    }


def is_fixed(config_class: type, name: str) -> bool:
    """Whether the name is of what all configurations of a class have in common, which no option changes."""
    return hasattr(config_class, name) and not hasattr(PreTrainedConfig, name)


def is_computed(config_class: type, name: str) -> bool:
    """Whether the name is a read-only property."""
    attribute = getattr(config_class, name, None)
    return isinstance(attribute, property) and attribute.fset is None
