"""Options of `contextseg-predict`. Nothing heavy is imported here, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Literal

from .command_line import MODEL_HELP, CommandOptions, option, positional
from .inference_options import InferenceOptions
from .reading_options import PixelOptions


@dataclass
class PredictArguments(CommandOptions, PixelOptions, InferenceOptions):
    model: str = positional(MODEL_HELP)
    images: list[str] = positional("image files, and folders that are searched for them")
    output: str = option(
        "masks",
        "folder for the results; masks keep the file names and subfolders of the images",
        metavar="FOLDER",
    )
    overlay: bool = option(
        False,
        "also write the images overlaid with class colors, or with objects, to overlays/ in the output folder",
    )
    polygons: bool = option(
        False,
        "also write the areas of the classes to polygons/: GeoJSON in longitude and latitude, in pixels for images "
        "without coordinates",
    )
    polygons_crs: Literal["wgs84", "scene"] = option(
        "wgs84", "coordinates of the polygons: longitude and latitude, or those of the raster"
    )
    memory: str = option(
        "2GB",
        "most memory besides the model for a raster, such as 500MB, 2GB or 1.5GiB; the result does not depend on it",
        metavar="SIZE",
    )
    threshold: float = option(0.5, "a detector writes objects with a score above this")
    confidence: bool = option(
        False, "also write the probability of the predicted class to confidence/: 16 bits, 65535 is 1"
    )
    entropy: bool = option(
        False,
        "also write the entropy divided by log K to entropy/: 16 bits, 65535 is 1 (all classes equally likely)",
    )
    probabilities: bool = option(
        False, "also write the probabilities of all K classes to probabilities/: .npy, float16 (K, H, W)"
    )
    explain: str | None = option(
        None,
        "also write which pixels the pixel at X,Y attends to, to attention/ (GLAM-Swin only)",
        metavar="X,Y",
    )
    grad_cam: str | None = option(
        None,
        "also write what speaks for a class where it is predicted, or for the class of the pixel at X,Y, to grad-cam/",
        metavar="CLASS",
    )
    skip_existing: bool = option(
        False, "skip images whose requested results an earlier run has already written, with whatever model"
    )
    workers: int | None = option(
        None,
        "threads that read images ahead of the model and write results behind it; 0 for none (default: number of cores minus one, at most 8)",
    )
    cpu: bool = option(False, "run on the CPU even if there is a GPU")
