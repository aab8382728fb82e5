"""Files of 8 bits: most pixels keep their class, layers that hurt stay float and are named, and facts are kept."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import tiny_relay, tiny_segdeformer
from tiny_runs import write_data

from contextseg import SegmentationImageProcessor, export_onnx
from contextseg.hub import int8_onnx
from contextseg.hub.int8_onnx import class_ids, quantize_onnx
from contextseg.scripts.export import main
from contextseg.training.int8_comparison import LabeledInputs, spread


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(tiny_segdeformer().eval(), SegmentationImageProcessor(), file)
    return file


@pytest.fixture(scope="module")
def samples():
    noise = np.random.default_rng(0).standard_normal((4, 1, 3, 64, 96), dtype=np.float32)
    return list(noise)


def answers(file, samples):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session, [session.run(None, {"pixel_values": sample})[0] for sample in samples]


@pytest.mark.slow
def test_a_file_of_8_bits_is_smaller_and_gives_nearly_the_same_classes(float_file, samples, tmp_path):
    written = quantize_onnx(float_file, tmp_path / "int8.onnx", samples, agreement=0)
    assert written.float_layers == []
    assert written.layers > 20
    session, quantized = answers(written.path, samples)
    _, exact = answers(float_file, samples)
    equal = np.mean([class_ids(a) == class_ids(b) for a, b in zip(quantized, exact, strict=True)])
    assert equal == pytest.approx(written.agreement)
    assert equal > 0.8
    assert any((a != b).any() for a, b in zip(quantized, exact, strict=True))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == ["road", "sky", "tree"]
    assert json.loads(facts["float_layers"]) == []
    assert session.run(None, {"pixel_values": np.zeros((2, 3, 90, 70), np.float32)})[0].shape[0] == 2


@pytest.mark.slow
def test_layers_stay_float_until_enough_pixels_keep_their_class(float_file, samples, tmp_path):
    plain = quantize_onnx(float_file, tmp_path / "all.onnx", samples, agreement=0)
    careful = quantize_onnx(float_file, tmp_path / "careful.onnx", samples, agreement=1)
    assert careful.agreement > plain.agreement
    assert 0 < len(careful.float_layers) <= int8_onnx.FLOAT_LAYERS
    assert careful.layers < plain.layers
    assert all(name.startswith(("backbone", "decoder", "classifier")) for name in careful.float_layers)


@pytest.mark.slow
def test_the_command_compares_both_files_on_the_data(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    write_data(tmp_path / "data", classes=["road", "sky", "tree"])
    tiny_relay().save_pretrained(tmp_path / "model")
    SegmentationImageProcessor().save_pretrained(tmp_path / "model")
    file = tmp_path / "streets.onnx"
    options = ["--onnx", str(file), "--with-processing", "--int8", "--data", str(tmp_path / "data/val")]
    assert main([str(tmp_path / "model"), *options]) == 0
    told = capsys.readouterr().out
    assert re.search(r"wrote .*streets.onnx: \d+ convolutions and linear layers in 8 bits", told)
    assert re.search(r"size \d\.\d -> \d\.\d MB; time \d\.\d\d of .*; mIoU [\d.]+ -> [\d.]+ % on", told)
    assert [entry.name for entry in tmp_path.glob("*.onnx*")] == ["streets.onnx"]


def test_inputs_are_those_of_the_file(tmp_path):
    write_data(tmp_path / "data", classes=["road", "sky", "tree"])
    model, processor = tiny_relay(), SegmentationImageProcessor()
    places = str(tmp_path / "model"), str(tmp_path / "data/val")
    plain = LabeledInputs(*places, model, processor, with_processing=False)
    inside = LabeledInputs(*places, model, processor, with_processing=True)
    image = np.asarray(plain.data[0]["image"])
    assert (inside.samples()[0][0] == image).all()
    expected = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(plain.samples()[0], expected)


def test_images_are_spread_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]
