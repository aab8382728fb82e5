"""Models that are damaged, incomplete or not finite are refused by every command, in one sentence with the path."""

import errno
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from cases import each
from safetensors.torch import load_file, save_file
from tiny import tiny_glam_swin
from transformers import AutoModelForSemanticSegmentation

from contextseg import GlamSwinForSemanticSegmentation, SegmentationImageProcessor
from contextseg.training.model_files import WeightsError, first_not_finite, headers, load_model
from contextseg.training.models import open_model, task_of_model
from contextseg.training.publishing import ExportArguments, export_to, open_trained
from contextseg.training.records import read_json
from contextseg.training.starting_points import read_config

WEIGHTS, INDEX, CONFIG, PROCESSOR = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("config.json", "preprocessor_config.json"),
)


def saved(folder, **options):
    tiny_glam_swin().save_pretrained(folder, **options)
    SegmentationImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "sharded", max_shard_size="20KB")


def content(name, change):
    """A change of the bytes of one file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def tensors(change):
    """A change of the tensors in the file of weights."""

    def apply(folder):
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def replace_by(function, name="classifier.weight"):
    return tensors(lambda weights: weights.update({name: function(weights[name])}))


DAMAGES = {
    "cut": (content(WEIGHTS, lambda data: data[:5000]), f"{WEIGHTS} is damaged"),
    "empty": (content(WEIGHTS, lambda _: b""), f"{WEIGHTS} is damaged .*has 0 bytes"),
    "a pointer of git-lfs": (
        content(WEIGHTS, lambda _: b"version https://git-lfs\n" * 5),
        f"{WEIGHTS} is damaged",
    ),
    "a huge header": (
        content(WEIGHTS, lambda data: struct.pack("<Q", 2**40) + data[8:]),
        f"{WEIGHTS} is damaged",
    ),
    "a missing weight": (
        tensors(lambda weights: weights.pop("classifier.weight")),
        "lacks 1 .*classifier.weight",
    ),
    "another shape": (replace_by(lambda weight: weight[:1].clone()), "another shape .*classifier.weight"),
    "not a number": (replace_by(lambda weight: weight * torch.nan), "classifier.weight has .* not numbers"),
    "infinite": (replace_by(lambda weight: weight + torch.inf), "classifier.weight has .*infinite"),
    "whole numbers": (replace_by(torch.Tensor.long), "classifier.weight as whole numbers"),
    "an empty config": (content(CONFIG, lambda _: b""), f"{CONFIG} is damaged: it is empty"),
    "half a config": (content(CONFIG, lambda data: data[:99]), f"{CONFIG} is damaged"),
    "a list": (content(CONFIG, lambda _: b"[]"), f"{CONFIG} is damaged: .* object"),
    "binary": (content(PROCESSOR, lambda _: b"\xff\xfe\x00"), f"{PROCESSOR} is damaged"),
    "a number for the type": (content(CONFIG, lambda _: b'{"model_type": 5}'), f"{CONFIG} .*its model_type"),
    "a value out of range": (
        content(CONFIG, lambda data: data.replace(b'"patch_size": 4', b'"patch_size": 0')),
        "cannot be loaded: patch_size is 0",
    ),
    "a number for a switch": (
        content(PROCESSOR, lambda data: data.replace(b'"do_rescale": true', b'"do_rescale": 7')),
        f"{PROCESSOR} cannot be loaded: do_rescale is 7",
    ),
    "null": (content(PROCESSOR, lambda _: b"null"), f"{PROCESSOR} is damaged"),
}


def damaged(whole, folder, damage):
    damage(shutil.copytree(whole, folder))
    return folder


@each(("damage", "message"), DAMAGES)
def test_a_damaged_model_is_never_used(damage, message, whole, tmp_path):
    folder = damaged(whole, tmp_path / "model", damage)
    with pytest.raises(ValueError, match=message) as caught:
        open_model(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_weights_without_permission_are_not_said_to_be_damaged(whole, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(WeightsError, match=f"{WEIGHTS} cannot be read: permission denied"):
        headers(whole / WEIGHTS)


def test_what_a_damaged_model_does_is_answered_with_its_path(whole, tmp_path):
    damage = content(CONFIG, lambda data: json.dumps(json.loads(data) | {"auto_map": "AutoConfig"}).encode())
    folder = damaged(whole, tmp_path / "model", damage)
    with pytest.raises(ValueError, match="is damaged") as caught:
        task_of_model(str(folder))
    assert str(folder) in str(caught.value)


@each(("damage", "message"), [DAMAGES[name] for name in ("not a number", "an empty config")])
def test_a_damaged_model_is_never_exported(damage, message, whole, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_trained(str(damaged(whole, tmp_path / "model", damage)))


@each(("damage", "message"), [DAMAGES[name] for name in ("half a config", "a list", "null", "binary")])
def test_nothing_starts_from_damaged_settings(damage, message, whole, tmp_path):
    folder = str(damaged(whole, tmp_path / "model", damage))
    with pytest.raises(ValueError, match=message):
        read_config(folder, folder)


@each("record", ["", "[" * 99999])
def test_a_damaged_record_is_named_before_anything_is_exported(record, whole, tmp_path):
    model = shutil.copytree(whole, tmp_path / "model")
    (model / "run.json").write_text(record)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        export_to(tmp_path / "new", ExportArguments(str(model)))
    assert not (tmp_path / "new").exists()


SHARDS = {
    "a shard is missing": (
        lambda folder: next(folder.glob("model-*")).unlink(),
        "is missing, which .*index.json",
    ),
    "no map": (content(INDEX, lambda _: b"{}"), f"{INDEX} is damaged"),
    "wrong notes": (content(INDEX, lambda _: b'{"weight_map": {}, "metadata": 0}'), f"{INDEX} is damaged"),
    "a map of numbers": (content(INDEX, lambda _: b'{"weight_map": {"a": 3}}'), f"{INDEX} is damaged"),
}


@each(("damage", "message"), SHARDS)
def test_every_shard_is_needed(damage, message, sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        open_model(str(folder))


def test_a_whole_model_is_opened_from_one_file_or_from_shards(whole, sharded):
    for folder in (whole, sharded):
        assert not load_model(AutoModelForSemanticSegmentation, str(folder)).training


def test_from_pretrained_names_the_folder_of_damaged_weights(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(OSError, match=f"the weights in {folder} .* are damaged"):
        GlamSwinForSemanticSegmentation.from_pretrained(folder)


@each(
    ("value", "found"),
    [(1.0, None), (3e38, None), (torch.inf, "b"), (-torch.inf, "b"), (torch.nan, "b")],
)
def test_the_first_weight_that_is_not_finite_is_found(value, found):
    weights = {
        "steps": torch.tensor(2**40),
        "a": torch.ones(3),
        "none": torch.ones(0),
        "b": torch.tensor([1, value]),
    }
    assert first_not_finite(weights) == found


@each("text", ["", "{", "[1]", "3", '{"a": NaN', "[" * 99999])
def test_a_damaged_record_is_named(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "run.json") == {"a": 1}
