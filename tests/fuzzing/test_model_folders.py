"""Damaged folders of models: contextseg-predict predicts, or ends with one sentence that has the path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from fuzzing.images import COLOR
from fuzzing.limits import Outcomes, check_message
from fuzzing.mutations import WAYS
from fuzzing.values import changed, json_value
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_glam_swin, tiny_segdeformer

from contextseg import SegmentationImageProcessor
from contextseg.scripts.predict import main

SECONDS, MEGABYTES = 20, 512
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
PALETTE = [[0, 0, 0], [10, 20, 30], [200, 0, 0]]


def save_models(path: Path) -> list[Path]:
    """A model in one file, one in several, and one with a backbone of its own."""
    saved = []
    for build, options in (
        (tiny_glam_swin, {}),
        (tiny_glam_swin, {"max_shard_size": "20KB"}),
        (tiny_segdeformer, {}),
    ):
        saved.append(path / f"model{len(saved)}")
        build().save_pretrained(saved[-1], **options)
        SegmentationImageProcessor(palette=PALETTE).save_pretrained(saved[-1])
    return saved


def change_bytes(folder: Path, rng: Random) -> None:
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size])
    data = path.read_bytes()
    path.write_bytes(rng.choice(WAYS)(data, data[::-1], rng))


def change_header(folder: Path, rng: Random) -> None:
    """The header of a file of weights, in which their types, shapes and places are."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice(sorted(header))
    header[name] = changed(header[name], rng)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    size = rng.choice((len(text), len(text), len(text), 2**40, 0))
    path.write_bytes(size.to_bytes(8, "little") + text + data[8 + length :])


def change_json(folder: Path, rng: Random) -> None:
    path = rng.choice(sorted(folder.glob("*.json")))
    content = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 3))):
        content = changed(content, rng)
    path.write_text(json.dumps(content if rng.random() < 0.9 else json_value(rng)))


def change_tensor(folder: Path, rng: Random) -> None:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    weights = load_file(path)
    name = rng.choice(sorted(weights))
    ways: list[Callable] = [
        lambda tensor: tensor * torch.nan,
        lambda tensor: tensor + torch.inf,
        lambda tensor: tensor[:0],
        lambda tensor: tensor[None],
        lambda tensor: tensor.reshape(-1).repeat(2),
        lambda tensor: tensor.long(),
        lambda tensor: tensor.bool(),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.double(),
        lambda tensor: tensor * 1e30,
    ]
    weights[name] = rng.choice(ways)(weights[name]).contiguous()
    save_file(weights, path, metadata={"format": "pt"})


def rename_tensor(folder: Path, rng: Random) -> None:
    """A weight is left out, has another name, or is there twice."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    weights = load_file(path)
    name = rng.choice(sorted(weights))
    tensor = weights.pop(name) if rng.random() < 0.8 else weights[name].clone()
    if rng.random() < 0.7:
        weights[rng.choice((f"{name}x", f"model.{name}", name.upper(), "a\nb", ""))] = tensor
    save_file(weights, path, metadata=rng.choice(({"format": "pt"}, {"format": "tf"}, None)))


def remove_file(folder: Path, rng: Random) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    other = rng.choice(sorted(folder.iterdir())).read_bytes()
    path.unlink()
    if rng.random() < 0.3:
        path.mkdir()
    elif rng.random() < 0.3:
        path.write_bytes(other)


DAMAGES = (change_bytes, change_header, change_json, change_json, change_tensor, rename_tensor, remove_file)


class Predictions:
    """Damages copies of models, and predicts an image with each."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture) -> None:
        self.models, self.folder, self.output = save_models(path), path / "damaged", path / "masks"
        self.image, self.capture = path / "image.png", capture
        Image.fromarray(COLOR).save(self.image)

    def case(self, number: int) -> str:
        rng = Random(f"weights {number}")
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(rng.choice(self.models), self.folder)
        rng.choice(DAMAGES)(self.folder, rng)
        if rng.random() < 0.2:
            change_bytes(self.folder, rng)
        self.capture.readouterr()
        try:
            code = main([str(self.folder), str(self.image), "--output", str(self.output), "--cpu"])
        except SystemExit as end:
            check_message(str(end.code), str(self.folder))
            return "refused"
        told = self.capture.readouterr().err
        if code:  # the processor cannot prepare any image
            check_message(told, str(self.image))
            return "refused with the image"
        assert len(list(self.output.iterdir())) == 1
        return "predicted"


def run(numbers: range, path: Path, capture: pytest.CaptureFixture) -> None:
    Outcomes("weights", SECONDS, MEGABYTES).run(Predictions(path, capture).case, numbers, capture)


@pytest.mark.slow
def test_60_damaged_models_predict_or_are_refused(tmp_path, capsys):
    run(range(60), tmp_path, capsys)
