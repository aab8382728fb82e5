"""Fine-tuning of transformers' mask-classification models on semantic masks: the model's own loss, one mask per class.

Legend: B batch, M classes in a mask, K classes, C channels, H, W pixels.
"""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from ..modeling.label_rows import rows_of_equal_names, with_kept_rows
from ..processing.mask_models import FIXED_SIZE
from .model_files import load_model
from .models import MASK_CLASSIFIER
from .option_texts import crop_size
from .starting_points import checkpoint_of

if TYPE_CHECKING:
    from .finetuning_options import FinetuneOptions

logger = logging.getLogger(__name__)

TRAINED = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
POSITIONS = "embeddings.position_embeddings.weight"
CLASSIFIER = ("class_predictor.weight", "class_predictor.bias")
OF_NEW_CLASSES = "criterion.empty_weight"  # of "no object" and the classes in the loss
IGNORED = 255  # where a model's configuration has no ignore index


def mask_targets(labels: Tensor, ignore_index: int) -> dict[str, list[Tensor]]:
    """Labels (B, H, W) -> for each image the ids of its classes (M,) and their masks (M, H, W), without ignored pixels."""
    ids = [image.unique() for image in labels]
    ids = [found[found != ignore_index] for found in ids]
    masks = [(image == found[:, None, None]).float() for image, found in zip(labels, ids, strict=True)]
    return {"mask_labels": masks, "class_labels": ids}


def with_targets(inputs: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Inputs with `labels` (B, H, W) -> those that mask-classification models compute their loss from."""
    others = {name: value for name, value in inputs.items() if name != "labels"}
    if "labels" not in inputs:
        return others
    return others | mask_targets(inputs["labels"], getattr(config, "semantic_loss_ignore_index", IGNORED))


def start_from(source: str, class_names: Sequence[str], crop: str | None) -> PreTrainedModel:
    """Loads a mask-classification model for the given classes and crops, and logs what is newly initialized.

    Classes with the names of known ones keep their weights, and so does "no object". For crops of another size, the
    position table of an EoMT is resized, and the model takes images of the new size from then on.

    Args:
        source: A run, a folder, or a name on the Hub.
        class_names: Class names by id.
        crop: The value of --crop-size, if it is given.

    Raises:
        ValueError: If the model is not one that is trained here, or does not take such crops.
    """
    model = load_model(MASK_CLASSIFIER.auto_class, checkpoint_of(source))
    if model.config.model_type not in TRAINED:
        raise ValueError(
            f"--init-from {source} is a '{model.config.model_type}', whose loss needs more than masks. Start from an EoMT, "
            "Mask2Former or MaskFormer."
        )
    side = image_side(model.config, crop)
    known, wanted = dict(model.config.id2label), dict(enumerate(class_names))
    rows = rows_of_equal_names(known, wanted)
    if known != wanted or side != getattr(model.config, "image_size", side):
        model = rebuilt(model, wanted, rows, side)
    new = [name for name, row in zip(class_names, rows, strict=True) if row is None]
    logger.warning(
        "%s: %s loaded as it is; newly initialized: %s",
        source,
        type(model).__name__,
        f"{len(new)} of {len(rows)} classes" if new else "nothing",
    )
    return model


def image_side(config: PreTrainedConfig, crop: str | None) -> int | None:
    """The side of the images that a model is to take: the crops'; None for models that take any size."""
    if config.model_type not in FIXED_SIZE:
        return None
    if crop is None:
        return config.image_size
    height, width = crop_size(crop)
    if height != width or height % config.patch_size:
        raise ValueError(
            f"--crop-size {crop} is not a size for an EoMT with patches of {config.patch_size} pixels, which takes square images. "
            f"Give a side in multiples of {config.patch_size}, or leave it out for {config.image_size}."
        )
    return height


@torch.no_grad()
def rebuilt(
    model: PreTrainedModel, names: dict[int, str], rows: Sequence[int | None], side: int | None
) -> PreTrainedModel:
    """The model for classes `names`, of which it knows those with an index in `rows`, and images of `side` pixels."""
    config = copy.deepcopy(model.config)
    config.id2label, config.label2id = names, {name: index for index, name in names.items()}
    if side is not None:
        config.image_size = side
    new = type(model)(config)
    stored, fresh = model.state_dict(), new.state_dict()
    for name in stored.keys() & fresh.keys():
        if name.endswith(CLASSIFIER):  # its last row is "no object"
            stored[name] = with_kept_rows(stored[name], fresh[name], [*rows, len(stored[name]) - 1])
        elif name.endswith(OF_NEW_CLASSES):
            stored[name] = fresh[name]
        elif name == POSITIONS:
            stored[name] = resized_table(stored[name], len(fresh[name]))
    new.load_state_dict(stored)
    return new


def resized_table(table: Tensor, count: int) -> Tensor:
    """Positions (N, C) of a square grid -> (count, C) of a finer or coarser one."""
    before, after = math.isqrt(len(table)), math.isqrt(count)
    if before == after:
        return table
    grid = table.T.reshape(1, -1, before, before)
    resized = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T


def check_options(options: "FinetuneOptions", arguments: TrainingArguments) -> None:
    """Raises ValueError for options that do not go with a loss over masks.

    Args:
        options: Our options.
        arguments: Trainer's.
    """
    given = {
        "--loss": options.loss,
        "--class-weights": options.class_weights,
        "--label-smoothing": options.label_smoothing,
        "--label_smoothing_factor": arguments.label_smoothing_factor,
    }
    if named := [name for name, value in given.items() if value]:
        raise ValueError(
            f"{options.init_from} classifies masks and has its own loss: {named[0]} has no effect. Leave it out."
        )
    by_loss = arguments.metric_for_best_model in ("loss", "eval_loss")
    if by_loss and (arguments.load_best_model_at_end or options.early_stopping is not None):
        raise ValueError(
            f"{options.init_from} classifies masks, and its loss is not computed on whole images. Choose the best model by "
            "--metric_for_best_model mean_iou."
        )
