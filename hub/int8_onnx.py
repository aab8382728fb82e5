"""ONNX files with weights and activations of 8 bits: static quantization by onnxruntime, calibrated on images.

Convolutions and linear layers have weights quantized per channel (int8), and inputs quantized with the range that they
have on the calibration images (uint8, one range a tensor). Products of two activations, softmax, normalization and
activation functions stay float. ReLU, sums, concatenation and resizing of inputs and outputs of convolutions are in 8
bits. Linear layers are onnxruntime's `MatMulIntegerToFloat`, which adds the bias too; the rest is in QDQ format.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..processing.atomic_write import atomic_write
from .served_files import check_new_file

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from onnxruntime import InferenceSession

AGREEMENT = 0.98  # share of pixels whose class stays
FLOAT_LAYERS = 6  # at most, in the search for layers that hurt
BETWEEN = ("Relu", "Resize", "Concat", "Add", "MaxPool")  # between convolutions
MICROSOFT = "com.microsoft"  # domain of onnxruntime's own operators
SCOPES = "pkg.torch.onnx.name_scopes"  # of torch's exporter: the modules that a node is in


@dataclass(frozen=True)
class Int8File:
    """What `quantize_onnx` wrote."""

    path: Path
    layers: int  # convolutions and linear layers in 8 bits
    agreement: float  # share of pixels of the calibration images that have the class of the float file
    float_layers: list[str] = field(default_factory=list)  # modules that stay float because they hurt


def quantize_onnx(
    source: str | Path, path: str | Path, samples: Sequence[np.ndarray], agreement: float = AGREEMENT
) -> Int8File:
    """Writes a file of `export_onnx` with weights and activations of 8 bits.

    Layers that hurt stay float. They are found by a greedy search: if less than `agreement` of the pixels of the samples
    keep their class, each part of the model (a stage of the encoder, a module of the decoder) is left float in turn. The
    parts are then left float together, the one that helped most first, until the agreement is reached, none helps any
    more, or six are float. The metadata of the file lists them as JSON under `float_layers`.

    Args:
        source: The float file.
        path: The new file.
        samples: Inputs of the file (B, ...), which calibrate it and measure the agreement; 16 to 64 images do.
        agreement: Share of pixels, from 0 to 1, that must keep their class. With 0, all layers are quantized.

    Returns:
        The number of layers in 8 bits, the agreement, and the names of the parts that stay float.

    Raises:
        ImportError: If a package of the extra `[onnx]` is missing.
        ValueError: If the file exists, its folder does not, or nothing can be quantized.
    """
    from .onnx_export import load_onnxruntime

    path = Path(path)
    check_new_file(path)
    load_onnxruntime()
    with TemporaryDirectory() as folder, quiet():
        quantization = Quantization(Path(source), samples, Path(folder))
        floats, reached = quantization.search(agreement)
        model = quantization.quantized(floats)
    with atomic_write(path) as writing:
        model.metadata_props.add(key="float_layers", value=json.dumps(floats))
        writing.write_bytes(model.SerializeToString())
    kept = sum(part not in floats for part in quantization.parts.values())
    return Int8File(path, kept, reached, floats)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of onnxruntime's quantization, which are about its own steps."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Quantization:
    """One float file with the ranges of its tensors.

    Args:
        source: The float file.
        samples: Inputs of the file.
        folder: Where temporary files may lie.
    """

    def __init__(self, source: Path, samples: Sequence[np.ndarray], folder: Path) -> None:
        self.samples, self.folder = samples, folder
        self.prepared = folder / "prepared.onnx"
        expected = open_session(
            source, basic=self.prepared
        )  # constants are folded, normalization is in weights
        self.name = expected.get_inputs()[0].name
        self.expected = self.classes(expected)
        import onnx
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        scopes = {node.name: part_of(node) for node in onnx.load(source, load_external_data=False).graph.node}
        self.model = load_model_with_shape_infer(self.prepared)
        spell_out_normalization(self.model)
        self.parts = {node.name: scopes.get(node.name) or node.name for node in weighted_nodes(self.model)}
        if not self.parts:
            raise ValueError(f"{source} has neither convolutions nor linear layers to quantize.")
        self.ranges = calibrated(self.prepared, [{self.name: sample} for sample in samples], folder)

    def quantized(self, floats: Sequence[str]) -> "ModelProto":
        """The file in 8 bits but for these parts."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = deepcopy(self.model)
        layers = [name for name, part in self.parts.items() if part not in floats]
        if not layers:
            return model
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=layers + nodes_between(model, layers),
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv", "MatMul", "Gemm", *BETWEEN],
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        quantizer.quantize_model()
        join_linear_layers(quantizer.model.model, layers)
        quantizer.model.topological_sort()
        return quantizer.model.model

    def search(self, wanted: float) -> tuple[list[str], float]:
        """The parts to leave float, see `quantize_onnx`, and the agreement that is reached."""
        floats: list[str] = []
        reached = self.agreement(floats)
        if reached >= wanted:
            return floats, reached
        gains = {part: self.agreement([part]) for part in dict.fromkeys(self.parts.values())}
        for part in sorted(gains, key=gains.__getitem__, reverse=True)[:FLOAT_LAYERS]:
            with_part = self.agreement([*floats, part])
            if with_part > reached:
                floats, reached = [*floats, part], with_part
            if reached >= wanted:
                break
        return floats, reached

    def agreement(self, floats: Sequence[str]) -> float:
        """Share of pixels that have the class of the float file."""
        file = self.folder / "quantized.onnx"
        file.write_bytes(self.quantized(floats).SerializeToString())
        equal = [
            (found == expected).mean()
            for found, expected in zip(self.classes(open_session(file)), self.expected, strict=True)
        ]
        return float(np.mean(equal))

    def classes(self, session: "InferenceSession") -> list[np.ndarray]:
        """The class of each cell or pixel of the samples."""
        return [class_ids(session.run(None, {self.name: sample})[0]) for sample in self.samples]


def class_ids(result: np.ndarray) -> np.ndarray:
    """Logits (B, K, h, w) or ids (B, H, W) -> ids."""
    return result.argmax(1) if result.ndim == 4 else result


def open_session(path: Path, basic: Path | None = None) -> "InferenceSession":
    """A file in onnxruntime; with `basic`, the graph after exact simplifications alone is written there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if basic is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(basic)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def part_of(node: "NodeProto") -> str:
    """The part of the model that a node is in, such as "backbone.encoder.stages.1" or "decoder.fusion"."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    modules = [scope for scope in json.loads(scopes.replace("'", '"'))[:-1] if scope]
    if not modules:
        return ""
    names = modules[-1].removeprefix("model.").split(".")
    depth = next((index for index, name in enumerate(names) if name.isdigit()), 1)
    return ".".join(names[: depth + 1])


def spell_out_normalization(model: "ModelProto") -> None:
    """Writes batch normalization that is not in the weights of a convolution as a product and a sum.

    Convolutions of bytes have channels last, and onnxruntime transposes for an operator with channels first.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not constants.keys() >= set(node.input[1:]):
            nodes.append(node)
            continue
        weight, bias, mean, variance = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        scale = weight / np.sqrt(variance + epsilon)
        source, output = node.input[0], node.output[0]
        for kind, values in (("Mul", scale), ("Add", bias - mean * scale)):
            constant = f"{output}_{kind}"
            held = values.astype(np.float32).reshape(-1, 1, 1)
            graph.initializer.append(numpy_helper.from_array(held, constant))
            result = output if kind == "Add" else f"{output}_scaled"
            nodes.append(helper.make_node(kind, [source, constant], [result], constant))
            source = result
    del graph.node[:]
    graph.node.extend(nodes)


def weighted_nodes(model: "ModelProto") -> list["NodeProto"]:
    """Convolutions of images and products with a constant matrix."""
    constants = {constant.name: len(constant.dims) for constant in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if (node.op_type == "Conv" and constants.get(node.input[1]) == 4)
        or (node.op_type in ("MatMul", "Gemm") and constants.get(node.input[1]) == 2)
    ]


def nodes_between(model: "ModelProto", layers: Sequence[str]) -> list[str]:
    """Names of the nodes whose inputs are all in 8 bits anyway: of these convolutions, from them, or from such nodes."""
    constants = {constant.name for constant in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.name in layers]
    inside = {name for node in convolutions for name in (node.input[0], node.output[0])}  # tensors
    names = []
    for node in model.graph.node:
        data = node.input[:1] if node.op_type == "Resize" else node.input
        if node.op_type in BETWEEN and all(name in inside for name in data if name not in constants):
            inside.update(node.output)
            names.append(node.name)
    return names


def join_linear_layers(model: "ModelProto", layers: Sequence[str]) -> None:
    """Makes one node of each of these products in QDQ format and the bias that is added to it.

    onnxruntime would leave the bias to an operator of its own, and would multiply floats where it knows the size of images.
    """
    from onnx import helper

    graph = model.graph
    sizes = {constant.name: list(constant.dims) for constant in graph.initializer}
    from_bytes = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = Counter(name for node in graph.node for name in node.input)
    adds = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    joined = {}  # nodes, by the output of the node that each replaces
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in from_bytes:
            node.input[0] = from_bytes[node.input[0]].input[0]  # of the same shape
        if node.op_type != "MatMul" or node.name not in layers or not from_bytes.keys() >= set(node.input):
            continue
        bytes_, scales, zeros = zip(*(from_bytes[name].input for name in node.input), strict=True)
        inputs, output = [*bytes_, *scales, *zeros], node.output[0]
        add = adds.get(output) if readers[output] == 1 else None
        bias = (
            next((name for name in add.input if sizes.get(name) == sizes[bytes_[1]][1:]), None)
            if add
            else None
        )
        if bias is not None:
            inputs, output = [*inputs, bias], add.output[0]
            joined[output] = None
        joined[node.output[0]] = helper.make_node(
            "MatMulIntegerToFloat", inputs, [output], node.name, domain=MICROSOFT
        )
    nodes = [joined.get(node.output[0], node) for node in graph.node]
    read = {name for node in nodes if node for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node and read.intersection(node.output))
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def calibrated(path: Path, inputs: Sequence[dict[str, np.ndarray]], folder: Path) -> Any:
    """The smallest and largest value of each tensor, onnxruntime's TensorsData."""
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    calibrator = create_calibrator(
        path,
        ["Conv", "MatMul", "Gemm", *BETWEEN],
        augmented_model_path=str(folder / "calibrated.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(Reader())
    return calibrator.compute_data()
