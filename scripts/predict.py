"""contextseg-predict: segments image files.

contextseg-predict runs/streets photo.jpg big.tif folder/ --output masks/
contextseg-predict runs/streets big.tif --window 1024 --confidence --entropy
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..training.command_line import parse, short_errors

if TYPE_CHECKING:
    from .prediction import Job

PROGRAM = "contextseg-predict"
DESCRIPTION = """Segment image files. Each mask is a PNG as large as its file, pixel for pixel (also for rotated photographs), whose
values are class ids and whose palette shows them in colours. Files that cannot be read are reported at the end."""


@dataclass
class PredictArguments:
    model: str  # a run of contextseg-train (its best/), a folder of save_pretrained, or a Hub name
    images: list[str]  # image files, and folders of them, searched through
    # Output
    output: str = "masks"  # folder for the masks, which keep the images' names and paths below a folder
    overlay: bool = False  # also write pictures tinted with the classes, to overlays/ in there
    confidence: bool = False  # also the probability of the class, to confidence/: 16-bit PNG, 65535 is 1
    entropy: bool = False  # also the entropy over log K, to entropy/: 16-bit PNG, 65535 is 1, all alike
    probabilities: bool = False  # also those of all classes, to probabilities/: .npy of float16 (K, H, W)
    explain: str | None = None  # X,Y: also show where this pixel looks (GLAM's eq. 7), to attention/
    # Protocol
    window: str | None = None  # predict in windows of so many pixels, or HEIGHTxWIDTH (default: whole images)
    overlap: float = 0.5  # share of a window that its neighbour covers as well
    blend: Literal["gaussian", "constant"] = "gaussian"  # weights of the pixels of overlapping windows
    batch_size: int = 4  # windows of one forward pass
    scales: str = "1"  # F,F: average the probabilities of the image at these scales, such as 0.75,1,1.25
    flip: bool = False  # average with the prediction for the mirrored image
    # Machine
    cpu: bool = False  # leave GPUs alone
    traceback: bool = False  # show where in the code an error came from


def main(argv: list[str] | None = None) -> int:
    arguments = parse(PredictArguments, argv, PROGRAM, DESCRIPTION)
    with short_errors(PROGRAM, arguments.traceback):
        failures = predict(arguments)
    for job, message in failures:
        print(message if str(job.source) in message else f"{job.source}: {message}", file=sys.stderr)
    return 1 if failures else 0


def predict(arguments: PredictArguments) -> "list[tuple[Job, str]]":
    """Writes what was asked for; the files that could not be segmented, and why."""
    from accelerate import Accelerator
    from tqdm import tqdm

    from ..training.inference_options import inference_of
    from ..training.models import open_model
    from .prediction import Predictor, find_jobs, parse_position
    from .prediction_maps import MAPS

    position = parse_position(arguments.explain) if arguments.explain else None
    inference = inference_of(arguments)
    jobs = find_jobs(arguments.images, arguments.output)
    model, processor, _ = open_model(arguments.model)
    model.to(Accelerator(cpu=arguments.cpu).device)
    maps = [name for name in MAPS if getattr(arguments, name)]
    predictor = Predictor(model, processor, inference, maps=maps, overlay=arguments.overlay, explain=position)
    failures = []
    for job in tqdm(jobs, unit="image", disable=len(jobs) == 1):
        try:
            predictor.run(job)
        except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            failures.append((job, str(error)))
    print(f"{len(jobs) - len(failures)} of {len(jobs)} images segmented into {arguments.output}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
