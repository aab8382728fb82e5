"""Options of `contextseg-evaluate`. Nothing heavy is imported here, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .command_line import MODEL_HELP, CommandOptions, option, positional, required
from .inference_options import InferenceOptions
from .reading_options import ReadingOptions


@dataclass
class EvaluateArguments(CommandOptions, ReadingOptions, InferenceOptions):
    model: str = positional(MODEL_HELP)
    data: str = required("data to score on, in the forms of --train and --val of contextseg-train")
    boundary_band: int | None = option(
        None,
        "distance from class boundaries for boundary IoU and boundary F, in pixels (default: 2 and 0.75 % of the image diagonal)",
        metavar="PIXELS",
    )
    surface_rule: Literal["max", "pooled", "nnformer"] = option(
        "max",
        "HD95 of volumes: the larger of the 95th percentiles of both directions, in mm (max), the percentile over both "
        "directions together (pooled), or as in nnFormer's evaluation: pooled, in voxels, 0 where a mask is empty",
    )
    tolerance: float = option(
        1.0, "distance up to which surfaces agree in the normalized surface Dice of volumes, in millimeters"
    )
    mean_classes: list[str] = option(
        [], "classes of volumes that enter the means (default: all but the background)", metavar="NAME"
    )
    memory: str = option(
        "2GB",
        "most memory besides the model for a raster above 4 megapixels, which is read by windows",
        metavar="SIZE",
    )
    workers: int | None = option(
        None, "processes that load data (default: number of cores minus one, at most 8)"
    )
    output: str | None = option(
        None, "folder for the results (default: the model's folder)", metavar="FOLDER"
    )
    cpu: bool = option(False, "run on the CPU even if there is a GPU")

    def output_folder(self) -> Path:
        """Returns --output, or the folder of the model, or for a model on the Hub the current folder."""
        if self.output is not None:
            return Path(self.output)
        return Path(self.model) if Path(self.model).is_dir() else Path()
