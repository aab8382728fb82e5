"""Started by test_hub.py with `python -I`: opens repositories as somebody who never installed contextseg.

    python -I hub_stranger.py REPOSITORY_ROOT OUTPUT FOLDER [HUB_NAME ...]

OUTPUT/0.npy, 1.npy, ... are the logits of FOLDER, of a copy saved from here, and of the Hub's repositories;
OUTPUT/report.json says what the model card's lines did, and which modules came from the library's checkout.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
from pathlib import Path

sys.modules["contextseg"] = (
    None  # `-I` alone does not hide an editable install: its import hook is in site-packages
)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation  # noqa: E402


def is_importable():
    try:
        import contextseg  # noqa: F401
    except ImportError:
        return False
    return True


def segment(source, image):
    """Model, processor and logits of a repository, all found by its own `auto_map`."""
    model = AutoModelForSemanticSegmentation.from_pretrained(source, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    return model, processor, outputs


def run_card(folder):
    """Executes the first Python block of the card, in its folder; the pipeline that it builds and what it prints."""
    code = re.search(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names, printed = {}, io.StringIO()
    os.chdir(folder)
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return names["segment"], printed.getvalue()


class LoggedErrors(logging.Handler):
    """Notes what transformers logs as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.messages = []
        logging.getLogger("transformers").addHandler(self)

    def emit(self, record):
        self.messages.append(record.getMessage())


def from_checkout(root):
    """Modules whose files belong to the library's checkout (this program and its environment do not count)."""
    files = {name: Path(getattr(module, "__file__", None) or "/") for name, module in sys.modules.items()}
    return [
        name
        for name, file in files.items()
        if file.is_relative_to(root) and not file.is_relative_to(sys.prefix) and file != Path(__file__)
    ]


def main(root, output, folder, *hub_names):
    image, errors = Image.open(folder / "photo.jpg"), LoggedErrors()
    model, processor, outputs = segment(folder, image)
    copy = output / "copy"
    model.save_pretrained(copy)
    processor.save_pretrained(copy)
    for index, source in enumerate([folder, copy, *hub_names]):
        np.save(output / f"{index}.npy", segment(source, image)[2].logits.numpy())

    pipeline, printed = run_card(folder)
    mask = processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])[0].numpy()
    labels = {label: index for index, label in model.config.id2label.items()}
    agree = [
        bool(np.array_equal(np.asarray(region["mask"]) > 0, mask == labels[region["label"]]))
        for region in pipeline(image)
    ]
    pil = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=True)
    report = {
        "processors": [type(processor).__name__, type(pil).__name__],
        "importable": is_importable(),
        "from_checkout": from_checkout(root),
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "printed": printed,
        "errors": errors.messages,
        "pipeline_agrees": agree,
        "classes_found": len(np.unique(mask)),
    }
    (output / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
