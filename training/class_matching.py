"""Matching of the classes of data with those of a trained model, by name."""

import logging
from typing import Any

from transformers import PreTrainedModel

from ..modeling.label_rows import respelled
from ..processing.data.pairing import listed
from .models import class_names

logger = logging.getLogger(__name__)


def check_classes(model: PreTrainedModel, data: Any) -> list[str]:
    """Returns the model's class names, and numbers the classes of the data in the same order.

    Classes with the same names in another order are matched by name, whatever their case and blanks. Where some names differ, classes are
    matched by position with a warning, unless a name that both have is at different positions.

    Raises ValueError if the classes cannot be matched.
    """
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    found = list(data.classes)
    known = respelled(names, found)
    if known != found and sorted(known) == sorted(found):
        logger.warning("the data has the classes of the model in another order; they are matched by name")
        data.number_classes_as(known)
        return names
    if len(known) != len(found) or any(
        name in known and known.index(name) != i for i, name in enumerate(found)
    ):
        raise ValueError(
            f"the model has {len(known)} classes and the data {len(found)}. Only in the model: {beyond(known, found)}; "
            f"only in the data: {beyond(found, known)}. Give the data the model's classes and names in "
            "classes.json, or fine-tune the model with contextseg-train --init-from (contextseg-finetune for mask models)."
        )
    if different := [pair for pair in zip(known, found, strict=True) if pair[0] != pair[1]]:
        logger.warning(
            "class '%s' of the model is '%s' in the data (%d names differ)", *different[0], len(different)
        )
    return names


def match_classes(model: PreTrainedModel, data: Any) -> None:
    """Numbers the classes of labeled images or objects as the model does, by name.

    The data may lack classes of the model. Where no name agrees, as for numbers in place of names, as many classes
    are matched by position, with a warning.

    Raises ValueError if the data has a class that the model does not have.
    """
    found = list(data.classes)
    known = respelled(class_names(model), found)
    if set(found) <= set(known):
        data.number_classes_as(known)
    elif len(found) == len(known) and not set(found) & set(known):
        logger.warning(
            "class '%s' of the model is '%s' in the data, and so on by position", known[0], found[0]
        )
    else:
        raise ValueError(
            f"the data has classes that the model does not have: {beyond(found, known)}. The model's own are "
            f"{', '.join(known[:5])}{', ...' * (len(known) > 5)}. Rename the classes of the data, or leave those out."
        )


def beyond(names: list[str], others: list[str]) -> str:
    """Returns the names that are not among the others, for messages."""
    return listed([name for name in names if name not in others]) or "none"
