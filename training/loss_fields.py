"""The loss that the options of a segmentation run describe: terms, class weights and label smoothing."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..configuration.decoding import LossConfig
from ..modeling.losses import parse_terms
from ..processing.data.datasets import SegmentationData
from ..processing.data.pairing import listed
from ..processing.data.report import check_data
from .loss_options import LossOptions

logger = logging.getLogger(__name__)

SAMPLED_MASKS = 200
ENET_CONSTANT = 1.02
AUTO = "auto"


LOSS_FIELDS = {"loss", "class_weights", "label_smoothing"}
TERMS_WITH = {
    "class_weights": ("cross_entropy", "focal", "boundary"),
    "label_smoothing": ("cross_entropy",),
}


def loss_fields(options: LossOptions, data: SegmentationData) -> dict[str, Any]:
    """Returns the configuration fields that the options set; empty if none is given.

    Raises:
        ValueError: If the class weights cannot be read, or do not fit the classes; or if no term of --loss uses them.
    """
    check_terms_use(options)
    given = {
        "loss": options.loss,
        "class_weights": options.class_weights and class_weights(options.class_weights, data),
        "label_smoothing": options.label_smoothing,
    }
    return {name: value for name, value in given.items() if value is not None}


def check_terms_use(options: LossOptions) -> None:
    """Raises ValueError for class weights or label smoothing that change no term of the given loss."""
    names = {name for factor, name in parse_terms(options.loss) if factor} if options.loss else set()
    for field, terms in TERMS_WITH.items():
        if names and getattr(options, field) and names.isdisjoint(terms):
            raise ValueError(
                f"--{field.replace('_', '-')} has no effect on --loss {options.loss}. Leave it out, or add "
                f"{' or '.join(terms)} to --loss."
            )


def check_loss_is_ours(model: PreTrainedModel, fields: Mapping[str, Any]) -> None:
    """Raises ValueError if a model of transformers, which computes its own loss, is to have another one."""
    given = LOSS_FIELDS & fields.keys()
    if given and not isinstance(model.config, LossConfig):
        raise ValueError(
            f"{type(model).__name__} computes its own loss: --{min(given).replace('_', '-')} needs a model of contextseg, "
            "such as --model segdeformer on the same encoder. Leave it out, or choose another model."
        )


def class_weights(text: str, data: SegmentationData) -> list[float]:
    """Parses --class-weights: "auto", numbers separated by commas, or the path of a JSON file."""
    if text == AUTO and not isinstance(data, SegmentationData):  # the noise of a dry run
        return [1.0] * len(data.classes)
    if text == AUTO:
        return weights_from_masks(data)
    try:
        weights = [float(number) for number in text.strip("[]() ").split(",")]
    except ValueError:
        weights = weights_from_file(Path(text), data.classes)
    if len(weights) != len(data.classes):
        raise ValueError(
            f"--class-weights has {len(weights)} numbers for {len(data.classes)} classes. Give one for each, in the order "
            f"{listed(data.classes)}; or a JSON file of numbers by class name; or auto."
        )
    return weights


def weights_from_file(path: Path, classes: list[str]) -> list[float]:
    """Reads a JSON object of numbers by class name (others weigh 1), or a list of one number per class."""
    if not path.is_file():
        raise ValueError(
            f"--class-weights {path} is neither auto, nor numbers such as 1,10,1, nor a file. Give one of them."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            return [float(number) for number in content]
        weights = {str(name): float(number) for name, number in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} has no class weights ({error}). Write JSON such as {{"{classes[-1]}": 10}}, or a list of numbers.'
        ) from error
    if unknown := sorted(set(weights) - set(classes)):
        raise ValueError(
            f"{path} has weights of {listed(unknown)}, but the classes are {listed(classes)}. Correct the names."
        )
    return [weights.get(name, 1.0) for name in classes]


def weights_from_masks(data: SegmentationData) -> list[float]:
    """Weights classes by their shares of the labeled pixels in a sample of the masks, and logs the result.

    w = 1 / ln(1.02 + p) for a class with share p of the pixels, which bounds the ratio of two weights by 36
    (ENet: Paszke et al. 2016, arXiv:1606.02147, section 5.2), scaled such that the mean over pixels is 1.
    """
    report = check_data(data, SAMPLED_MASKS)
    shares = report.shares()
    if not sum(shares):
        raise ValueError(
            "--class-weights auto found no labeled pixel in the masks. Check them with contextseg-check."
        )
    raw = [1 / math.log(ENET_CONSTANT + share) for share in shares]
    mean = sum(weight * share for weight, share in zip(raw, shares, strict=True))
    weights = [float(f"{weight / mean:.4g}") for weight in raw]
    rows = sorted(zip(weights, shares, data.classes, strict=True), reverse=True)
    shown = [f"{name} {weight:g} ({100 * share:.2g} % of the pixels)" for weight, share, name in rows]
    logger.warning("class weights from %d masks: %s", report.num_checked, listed(shown))
    return weights
