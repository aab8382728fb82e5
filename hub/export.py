"""Exports the repository of a trained model, and proves that it works without contextseg."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.image_reading import read_image
from ..processing.inference import Inference
from ..processing.mask_models import example_inputs, is_mask_model
from ..processing.overlays import mask_overlay, save_png
from ..processing.palettes import class_colors
from .card_data import EXAMPLE_NAME, PREDICTION_NAME, SEGMENTATION, task_of
from .errors import ProofError
from .model_card import CARD_NAME, RECORDS, read_settings, read_text, without_own_folders, write_text
from .serving import write_handler

EXAMPLE_SIDE = 512
RESULTS = ("reconstruction", "logits", "masks_queries_logits")  # the one that a model has is compared

# Runs in a second process. Arguments: Auto class, folder, file with an image and its expected logits.
PROOF = """
import sys
sys.modules["contextseg"] = None
import torch, transformers
auto_class, folder, case = sys.argv[1:]
case = torch.load(case, weights_only=True)
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
torch.manual_seed(0)  # of the masks of masked image models
with torch.no_grad():
    outputs = model(**(case["inputs"] or processor(case["image"], return_tensors="pt")))
logits = next(outputs[name] for name in case["results"] if name in outputs)
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
    handler: bool = False,
) -> None:
    """Saves a model and its image processor with code, scores, the record of the run, and an example image.

    Args:
        model: Model to save.
        processor: Image processor to save.
        folder: Folder to write to; created if missing.
        records_of: Folder with `evaluation.json` and `run.json`, or a folder directly below it.
        license: License of the weights, in the Hub's spelling; by default that of the card in `folder`, or of the
            weights' own card in `records_of`.
        example: File of the example image on the model's page, which will be public.
        draw_example: Returns an RGB image (H, W, 3), uint8, to use if there is no file.
        handler: Whether to add the `handler.py` of an Inference Endpoint.

    Raises:
        ValueError: If `example` is given and the model does not take RGB images.
    """
    records = {
        record: read_settings(records_of / record) or read_settings(records_of.parent / record)
        for record in RECORDS
    }
    image = example_image(folder, example, draw_example, getattr(model.config, "num_channels", 3))
    if not license and not (folder / CARD_NAME).exists() and (card := read_text(records_of / CARD_NAME)):
        license = ModelCard(card).data.license
    folder.mkdir(parents=True, exist_ok=True)  # only now, when nothing that is given can be at fault
    for record, content in records.items():
        if content:
            write_text(folder / record, json.dumps(without_own_folders(content), indent=1) + "\n")
    if image is not None:
        write_example(folder, *image)
    write_prediction(folder, model, processor)
    if handler:
        write_handler(folder, model.config.to_dict())  # before the card, which tells of it
    model.save_pretrained(folder, license=license)
    processor.save_pretrained(folder, license=license)


def example_image(
    folder: Path, example: str | None, draw: Callable[[], np.ndarray] | None, num_channels: int
) -> tuple[np.ndarray, str | None] | None:
    """Returns the example image for the model's page, and its title: the given one or a drawn one, as data may be private.

    None if the folder keeps what it has, or the model takes no RGB images.
    """
    if num_channels != 3:
        if example:
            raise ValueError(
                f"--example is an RGB image, but the model takes {num_channels} channels. Leave it out."
            )
        return None
    if example:
        return np.asarray(read_image(example)), None
    if draw is None or (folder / EXAMPLE_NAME).exists():
        return None
    return draw(), "Generated scene, not from the training data"


def write_example(folder: Path, pixels: np.ndarray, title: str | None) -> None:
    """Writes the example image: its pixels only, as the metadata of a photo may hold its location."""
    metadata = PngInfo()
    if title:
        metadata.add_text("Title", title)
    image = Image.fromarray(pixels)
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    image.save(folder / EXAMPLE_NAME, pnginfo=metadata)


def write_prediction(folder: Path, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Writes the classes that a segmenter predicts for the example image over it, with a legend."""
    example, target = folder / EXAMPLE_NAME, folder / PREDICTION_NAME
    if task_of({"architectures": [type(model).__name__]}) != SEGMENTATION or not example.is_file():
        target.unlink(missing_ok=True)
        return
    image = read_image(example)
    mask = Inference()(model.eval(), processor, image).cpu().numpy()
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    palette = class_colors(getattr(processor, "palette", None), len(names))
    save_png(mask_overlay(image, mask, palette, names=names), target)


def prove(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path, auto_class: str) -> None:
    """Loads a saved model without contextseg, and compares the logits of one image bit for bit, of a masked image model its
    reconstruction.

    Args:
        model: The model that was saved.
        processor: The image processor that was saved.
        folder: Folder of the saved model.
        auto_class: Name of the Auto class of transformers to load it with, such as
            "AutoModelForSemanticSegmentation".

    Raises:
        ProofError: If the folder cannot be loaded, or the logits differ.
    """
    sides = (6, 96, 128)[-getattr(model.config, "num_axes", 2) :]
    shape = (getattr(model.config, "num_channels", 3), *sides)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    inputs = example_inputs(model) if is_mask_model(model.config) else {}
    with torch.no_grad():
        outputs = model(**(inputs or processor(image, return_tensors="pt")))
    logits = next(outputs[name] for name in RESULTS if name in outputs)
    with TemporaryDirectory() as elsewhere:
        case = Path(elsewhere) / "case.pt"
        torch.save({"image": image, "inputs": inputs, "results": RESULTS, "logits": logits}, case)
        command = [sys.executable, "-I", "-c", PROOF, auto_class, str(folder.resolve()), str(case)]
        finished = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProofError(
            f"{folder} was written, but cannot be used without contextseg: {last}. "
            "Please report this with the model's config.json; --no-proof skips this check."
        )
