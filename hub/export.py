"""A repository of a trained model, and the proof that it stands alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.image_reading import read_image
from .card_data import EXAMPLE_NAME
from .errors import ProofError
from .model_card import RECORDS, read_settings, without_own_folders, write_text

EXAMPLE_SIDE = 512

# What the second Python runs: arguments are the Auto class, the folder, and a file of an image and the logits that it must give.
PROOF = """
import sys
sys.modules["contextseg"] = None
import torch, transformers
auto_class, folder, case = sys.argv[1:]
case = torch.load(case, weights_only=True)
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(case["image"], return_tensors="pt")).logits
if not torch.equal(logits, case["logits"]):
    sys.exit(f"logits differ by up to {(logits - case['logits']).abs().max():.3g}")
"""


def export_repository(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    folder: Path,
    records_of: Path,
    *,
    license: str | None = None,
    example: str | None = None,
    draw_example: Callable[[], np.ndarray] | None = None,
) -> None:
    """Saves a model and its image processor with their code, scores, record of the run, and an example picture.

    folder: where to write.
    records_of: folder with `evaluation.json` and `run.json`, or the folder inside the run that holds them.
    license: of the weights, in the Hub's spelling; by default the one that the card in `folder` has.
    example: file of the picture on the model's page, which will be public.
    draw_example: draws an RGB picture (H, W, 3), uint8, for want of a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for record in RECORDS:
        content = read_settings(records_of / record) or read_settings(records_of.parent / record)
        if content:
            write_text(folder / record, json.dumps(without_own_folders(content), indent=1) + "\n")
    write_example(folder, example, draw_example, getattr(model.config, "num_channels", 3))
    model.save_pretrained(folder, license=license)
    processor.save_pretrained(folder, license=license)


def write_example(
    folder: Path, picture: str | None, draw: Callable[[], np.ndarray] | None, num_channels: int
) -> None:
    """The picture on the model's page: one that was given, or a drawn one, for nobody's data is made public unasked."""
    if num_channels != 3:
        if picture:
            raise ValueError(
                f"--example is an RGB picture, but the model reads {num_channels} bands. Leave it out."
            )
        return
    title = PngInfo()
    if picture:
        pixels = np.asarray(read_image(picture))  # and nothing else: a photo's file tells where it was taken
    elif draw is None or (folder / EXAMPLE_NAME).exists():
        return
    else:
        pixels = draw()
        title.add_text("Title", "Generated scene, not of the training data")
    image = Image.fromarray(pixels)
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    image.save(folder / EXAMPLE_NAME, pnginfo=title)


def prove(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path, auto_class: str) -> None:
    """Opens the folder in a Python that cannot import contextseg, and compares the logits of one image bit for bit.

    auto_class: name of the class of transformers that opens the model, such as "AutoModelForSemanticSegmentation".

    Raises `ProofError` where the folder does not open, or gives other logits.
    """
    shape = (getattr(model.config, "num_channels", 3), 96, 128)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
    with TemporaryDirectory() as elsewhere:
        case = Path(elsewhere) / "case.pt"
        torch.save({"image": image, "logits": logits}, case)
        command = [sys.executable, "-I", "-c", PROOF, auto_class, str(folder.resolve()), str(case)]
        finished = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProofError(
            f"{folder} was written, but a Python without contextseg cannot use it: {last}. "
            "Please report this with the model's config.json; --no-proof skips this check."
        )
