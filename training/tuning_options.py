"""Options of what is trained of a pretrained model, of `contextseg-train` and `contextseg-finetune`."""

from dataclasses import dataclass

from .command_line import option


@dataclass(kw_only=True)
class TuningOptions:
    """Which weights are trained."""

    _argument_group_name = "Fine-tuning"

    freeze: list[str] = option(
        [],
        "backbone, or a module such as stages.0, that is not trained and stays in evaluation mode; takes several "
        "values, and may be repeated",
        metavar="MODULE",
    )
    lora: int = option(0, "rank of the LoRA updates of the backbone's linear layers; 0 trains all weights")
