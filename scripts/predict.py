"""contextseg-predict: segments image files, or classifies them, or detects objects in them.

contextseg-predict runs/streets photo.jpg big.tif folder/ --output masks/
contextseg-predict runs/streets big.tif --window 1024 --confidence --entropy
contextseg-predict runs/streets photo.jpg --grad-cam car
"""

import sys

from ..training.command_line import CommandLine, short_errors
from ..training.interruption import interruptible
from ..training.prediction_options import PredictArguments

PROGRAM = "contextseg-predict"
DESCRIPTION = """Segment image files. Each mask is a PNG with the pixel layout of its image file (also for photographs with an EXIF
rotation); its values are class ids, and its palette shows them in color. A classifier writes predictions.csv with the most probable
classes of each image, a detector annotations.json with boxes and masks in COCO's format. A GeoTIFF or another raster, of any size,
gets a GeoTIFF at its place. Files that cannot be read are reported at
the end."""


def new_parser() -> CommandLine:
    return CommandLine(PredictArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        from ..training.predictions import predict

        failures = predict(arguments)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
