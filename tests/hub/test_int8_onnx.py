"""Files of 8 bits: most pixels keep their class, layers that hurt stay float and are named, and facts are kept."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import tiny_relay, tiny_segdeformer
from tiny_runs import write_data
from torch.export import Dim

from contextseg import SegmentationImageProcessor, export_onnx
from contextseg.hub import int8_onnx, onnx_export
from contextseg.hub.int8_onnx import class_ids, quantize_onnx
from contextseg.modeling.decoder_upernet import UperNetDecoder
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


def written_graph(path, nodes, constants):
    """A file `pixel_values` (B, C, H, W) -> `logits` of these nodes."""
    from onnx import TensorProto, helper, numpy_helper, save

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)
        for name in ("pixel_values", "logits")
    ]
    nodes = [helper.make_node(kind, inputs, [output], output, **more) for kind, inputs, output, more in nodes]
    held = [numpy_helper.from_array(np.float32(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], held)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def kinds(path):
    import onnx

    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_linear_layer_with_its_bias_is_one_product_in_8_bits(samples, tmp_path):
    pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    nodes = [
        ("MatMul", ["pixel_values", "weight"], "products", {}),
        ("Add", ["bias", "products"], "biased", {}),
        ("MatMul", ["biased", "weight2"], "logits", {}),
    ]
    constants = {"weight": (96, 8), "bias": 8, "weight2": (8, 5)}
    constants = {name: random.standard_normal(size) for name, size in constants.items()}
    plain = written_graph(tmp_path / "float.onnx", nodes, constants)
    written = quantize_onnx(plain, tmp_path / "int8.onnx", samples, agreement=0)
    assert written.layers == 2
    assert kinds(written.path) == ["QuantizeLinear", "MatMulIntegerToFloat"] * 2
    (_, quantized), (_, exact) = answers(written.path, samples), answers(plain, samples)
    assert 0 < np.abs(quantized[0] - exact[0]).max() < 0.03 * np.ptp(exact[0])


def test_resizing_of_what_a_convolution_reads_is_in_8_bits(samples, tmp_path):
    pytest.importorskip("onnxruntime")
    nodes = [
        ("Tanh", ["pixel_values"], "read", {}),
        ("Conv", ["read", "weight"], "mixed", {}),
        ("Resize", ["read", "", "factors"], "enlarged", {"mode": "linear"}),
        ("Resize", ["mixed", "", "factors"], "mixed2", {"mode": "linear"}),
        ("Add", ["enlarged", "mixed2"], "added", {}),
        ("Sin", ["added"], "logits", {}),
    ]
    constants = {"weight": np.ones((3, 3, 1, 1)), "factors": [1, 1, 2, 2]}
    plain = written_graph(tmp_path / "float.onnx", nodes, constants)
    written = quantize_onnx(plain, tmp_path / "int8.onnx", samples, agreement=0)
    import onnx

    nodes = onnx.load(written.path).graph.node
    producers = {name: node.op_type for node in nodes for name in node.output}
    assert {producers[node.input[0]] for node in nodes if node.op_type in ("Resize", "Add", "Sin")} == {
        "DequantizeLinear"
    }
    assert [producers[node.input[0]] for node in nodes if node.op_type == "QuantizeLinear"].count("Tanh") == 1


def test_normalization_behind_a_sum_is_a_product_and_a_sum(samples, tmp_path):
    onnx = pytest.importorskip("onnx")
    statistics = {"scale": [1, 2, 3], "bias": [3, 2, 1], "mean": [0.1, 0.2, 0.3], "variance": [4, 1, 9]}
    nodes = [
        ("Tanh", ["pixel_values"], "read", {}),
        ("BatchNormalization", ["read", *statistics], "logits", {"epsilon": 0.5}),
    ]
    plain = written_graph(tmp_path / "float.onnx", nodes, statistics)
    model = onnx.load(plain)
    int8_onnx.spell_out_normalization(model)
    onnx.save(model, tmp_path / "spelled.onnx")
    assert kinds(tmp_path / "spelled.onnx") == ["Tanh", "Mul", "Add"]
    (_, found), (_, expected) = answers(tmp_path / "spelled.onnx", samples), answers(plain, samples)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_all_convolutions_and_taps_of_upernet_have_constant_weights(tmp_path):
    pytest.importorskip("onnxruntime")
    import onnx

    decoder = UperNetDecoder((8, 8), hidden_size=8).eval()
    maps = tuple(torch.randn(1, 8, side, side) for side in (12, 6))
    free = tuple({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in maps)
    program = torch.onnx.export(
        decoder, (maps,), dynamo=True, opset_version=onnx_export.OPSET, dynamic_shapes=(free,), verbose=False
    )
    program.save(tmp_path / "decoder.onnx")
    int8_onnx.open_session(tmp_path / "decoder.onnx", basic=tmp_path / "prepared.onnx")
    model = onnx.load(tmp_path / "prepared.onnx")
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.op_type for node in layers].count(
        "Gemm"
    ) == 15  # three rows of taps for each of five upsampled maps
    assert len(layers) == 23
    assert {node.name for node in int8_onnx.weighted_nodes(model)} == {node.name for node in layers}


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
    assert re.search(
        r"wrote .*streets.onnx: [^;]*ids[^;]*; \d+ convolutions and linear layers in 8 bits", told
    )
    assert re.search(
        r"size \d\.\d -> \d\.\d MB; time \d\.\d\d of .*; mIoU [\d.]+ -> [\d.]+ % on .*, those that calibrate among",
        told,
    )
    assert len(re.findall("wrote ", told)) == 1
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
