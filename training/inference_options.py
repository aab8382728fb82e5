"""Options for inference: sliding windows, scales and flips."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from .command_line import option
from .option_texts import factors, window_sides

if TYPE_CHECKING:
    from ..processing.inference import Inference

# Options of scores of volumes, which images do not have.
VOLUME_SCORES = {"surface_rule", "tolerance", "mean_classes"}
# Options of models that are not segmenters.
OF_ANY_TASK = {
    "model",
    "data",
    "images",
    "output",
    "skip_existing",
    "workers",
    "cpu",
    "traceback",
    "value_range",
    "pixel_limit",
    "task",
    "sample",
    "json",
}
OF_VOLUMES = {
    "window",
    "overlap",
    "blend",
    "window_batch_size",
    "flip",
    "confidence",
    "entropy",
    "probabilities",
    "num_channels",
    "classes",
}
VOLUMES = "segmentation of volumes"  # the task of a segmenter of volumes, for `check_task`
OF_TASKS = {
    "classification": OF_ANY_TASK,
    "detection": OF_ANY_TASK | {"overlay", "threshold"},
    VOLUMES: OF_ANY_TASK - {"value_range", "pixel_limit"} | OF_VOLUMES | VOLUME_SCORES,
}


def check_task(options: Any, task: str) -> None:
    """Raises ValueError if a command is not for a task, or options of it have no effect for the task.

    Args:
        options: Dataclass of options of `contextseg-check`, `-evaluate` or `-predict`.
        task: What data and model are for: "segmentation", `VOLUMES`, "classification", "detection" or
            "masked_pretraining".
    """
    if task == "masked_pretraining":
        raise ValueError(
            "the model is pretrained on masked images: it has no classes to predict. Train a segmenter that starts from it: "
            "contextseg-train --init-from MODEL."
        )
    for name in given_names(options):
        allowed = (
            name not in {"threshold", *VOLUME_SCORES} if task == "segmentation" else name in OF_TASKS[task]
        )
        if not allowed:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect on data and models for {task}. Leave the option out."
            )


def given_names(options: Any) -> Iterator[str]:
    """Yields the names of the options whose values are not the defaults; those without a default are left out."""
    for field in fields(options):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is not MISSING and getattr(options, field.name) != default:
            yield field.name


@dataclass(kw_only=True)
class WindowOptions:
    """Options of `contextseg-train`, `-evaluate` and `-predict`."""

    _argument_group_name = "Inference"

    window: str | None = option(
        None,
        "sliding-window inference with windows of this side in pixels, or HEIGHTxWIDTH, or SLICESxROWSxCOLUMNS for volumes "
        "(default: the whole image at once; for volumes, the model's crop size)",
        metavar="SIZE",
    )
    overlap: float = option(0.5, "share of a window that overlaps with the next one")
    blend: Literal["gaussian", "constant", "center"] = option(
        "gaussian",
        "how pixels in overlapping windows are weighted; center: only the central part of each window counts, and the grid "
        "is moved by half a step, as the relay token authors do",
    )
    share_context: bool = option(
        False,
        "compute the context of neighboring windows once, on a fixed grid (models of two scales that allow it: CASWiT)",
    )

    def inference(self) -> "Inference":
        """Returns the `Inference` that the options describe."""
        from ..processing.inference import Inference

        size = self.window and window_sides(self.window, "--window")
        return Inference(
            window=size, overlap=self.overlap, blend=self.blend, share_context=self.share_context
        )

    def window_options(self) -> str:
        """Options that make other commands use the same windows; starts with a space unless empty."""
        shared = " --share-context" if self.share_context else ""
        if self.window is None:
            return shared
        return f" --window {self.window} --overlap {self.overlap} --blend {self.blend}{shared}"


@dataclass(kw_only=True)
class InferenceOptions(WindowOptions):
    """Options of `contextseg-evaluate` and `contextseg-predict`."""

    window_batch_size: int = option(4, "windows in one forward pass")
    scales: str = option(
        "1", "average the probabilities over these scales of the image, such as 0.75,1,1.25", metavar="X,X"
    )
    flip: bool = option(
        False,
        "average with the prediction for the horizontally flipped image; for volumes, with all 7 mirrored ones",
    )

    def inference(self) -> "Inference":
        """Returns the `Inference` that the options describe."""
        batch_size, scales = self.window_batch_size, factors(self.scales)
        return replace(super().inference(), batch_size=batch_size, scales=scales, flip=self.flip)
