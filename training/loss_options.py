"""Options of the segmentation loss, of `contextseg-train` and `contextseg-finetune`."""

from dataclasses import dataclass

from .command_line import option


@dataclass(kw_only=True)
class LossOptions:
    _argument_group_name = "Loss"

    loss: str | None = option(
        None,
        "terms joined by +, each with an optional factor, such as cross_entropy+0.5*dice; the terms are cross_entropy, "
        "dice, tversky, focal, lovasz, boundary, foreground_dice and foreground_dice_per_image (default: cross_entropy, for "
        "nnformer cross_entropy+foreground_dice, or that of --init-from)",
        metavar="TERMS",
    )
    class_weights: str | None = option(
        None,
        "weights of the classes in cross_entropy, focal and boundary: auto, from the classes' shares in a sample of the "
        "masks; one number per class, such as 1,10,1; or a JSON file of numbers by class name",
        metavar="WEIGHTS",
    )
    label_smoothing: float | None = option(
        None,
        "share of each label that is spread over all classes (default: 0; for classification 0.1)",
    )
