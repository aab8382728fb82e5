"""How images are predicted, from the words of the command line."""

from typing import TYPE_CHECKING, Protocol

from ..processing.inference import Inference
from .command_line import height_and_width

if TYPE_CHECKING:
    from .options import TrainArguments


class InferenceOptions(Protocol):
    """The options of `contextseg-evaluate` and `contextseg-predict` that say how an image is predicted."""

    window: str | None
    overlap: float
    blend: str
    batch_size: int
    scales: str
    flip: bool


def inference_of(arguments: "InferenceOptions") -> Inference:
    return Inference(
        window=arguments.window and height_and_width(arguments.window, "--window"),
        overlap=arguments.overlap,
        blend=arguments.blend,
        scales=factors(arguments.scales),
        flip=arguments.flip,
        batch_size=arguments.batch_size,
    )


def validation_inference(arguments: "TrainArguments") -> Inference:
    """How a training evaluates: windows as asked for, at the images' own scale."""
    return Inference(
        window=arguments.eval_window and height_and_width(arguments.eval_window, "--eval-window"),
        overlap=arguments.eval_overlap,
        blend=arguments.eval_blend,
    )


def window_options(arguments: "TrainArguments") -> str:
    """What makes contextseg-evaluate and -predict do as the evaluations of this training."""
    if arguments.eval_window is None:
        return ""
    return (
        f" --window {arguments.eval_window} --overlap {arguments.eval_overlap} --blend {arguments.eval_blend}"
    )


def factors(text: str) -> tuple[float, ...]:
    """`"0.75,1,1.25"` -> (0.75, 1.0, 1.25)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales {text} is not a list of factors. Write them as 0.75,1,1.25.") from None
