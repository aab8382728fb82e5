"""A segmenter as one ONNX file for images of any size, checked in onnxruntime at sizes that the exporter never saw.

The file runs without PyTorch. It takes what the image processor makes of images and returns logits, or, with
the processing inside, images as bytes and returns class ids.
"""

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.atomic_write import atomic_write
from ..processing.plain_text import one_line
from .any_size import for_any_size
from .served_files import TRACED, ServedFile, check_new_file, checked, metadata, served
from .served_segmenters import ServedSegmenter

if TYPE_CHECKING:
    from types import ModuleType

OPSET = 20  # the first with GELU as one operator; torch converts its other translations, which are of 18
INSTALL_ONNX = "ONNX files need onnx, onnxscript and onnxruntime. Run: pip install 'contextseg[onnx]'"


@dataclass(frozen=True)
class OnnxFile(ServedFile):
    """What `export_onnx` wrote."""

    opset: int = OPSET


def load_onnxruntime() -> "ModuleType":
    """onnxruntime. Raises ImportError, with the extra to install, unless it, onnx and onnxscript are there."""
    try:
        import onnx  # noqa: F401 - torch's exporter needs both
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(INSTALL_ONNX) from error
    return onnxruntime


def export_onnx(
    model: PreTrainedModel, processor: BaseImageProcessor, path: str | Path, with_processing: bool = False
) -> OnnxFile:
    """Writes a segmenter of images as an ONNX file (opset 20) with free batch, height and width, and checks it.

    The metadata of the file holds as JSON `labels` (names by id), `palette` (one color per class), `image_mean`,
    `image_std`, `rescale_factor`, `channel_order` and `value_range` as the processor uses them, and `size` and
    `crop_size`, to which the caller resizes and crops images (or null); also `multiple_of` if the sides of images must
    be multiples of a number, which some encoders of other libraries need.

    Args:
        model: The segmenter, in float32 on the CPU.
        processor: Its image processor.
        path: The new file.
        with_processing: Whether normalization, the resizing of the logits and the choice of the class are inside.
            Input `images` (B, H, W, C) uint8, output `ids` (B, H, W) int32. Default: input `pixel_values`
            (B, C, H, W) float32, output `logits` (B, K, h, w) float32.

    Returns:
        The largest difference from PyTorch, and of what the sides of images must be multiples (mostly 1).

    Raises:
        ImportError: If a package of the extra `[onnx]` is missing.
        ValueError: If the file exists, its folder does not, the model is not a segmenter of images of any size or
            cannot be translated, the processing cannot be inside, or onnxruntime's results differ from PyTorch's by
            more than 1e-3 of the logits' range. No file is left then.
    """
    path = Path(path)
    check_new_file(path)
    runtime = load_onnxruntime()
    module = served(model, processor, with_processing)
    program = translated(module)
    program.model.metadata_props.update(metadata(model, processor))
    with atomic_write(path) as writing:
        program.save(str(writing))
        difference, multiple = checked(module, running(runtime, writing), path)
        if multiple > 1:
            program.model.metadata_props["multiple_of"] = str(multiple)
            program.save(str(writing))
    return OnnxFile(path, module.signature(), difference, multiple)


def translated(served: ServedSegmenter) -> Any:
    """The module as torch's ONNXProgram for any number and size of images. Raises ValueError if that fails."""
    axes = dict(zip(served.free_axes, ("batch", "height", "width"), strict=True))
    try:
        with torch.no_grad(), for_any_size(served.model), redirect_stdout(StringIO()):  # its progress
            return torch.onnx.export(
                served,
                (served.images(*TRACED),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[served.input_name],
                output_names=[served.output_name],
                dynamic_shapes=(axes,),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(str(error.__cause__ or error), 200)
        raise ValueError(
            f"a {type(served.model).__name__} like this cannot be written as ONNX ({reason}). Use its folder with PyTorch."
        ) from error


def running(runtime: "ModuleType", path: Path) -> Callable[[Tensor], Tensor | None]:
    """The file as a function of its input, which returns None if onnxruntime refuses it.

    Raises ValueError if onnxruntime cannot load the file.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    failures = (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.NotImplemented,
        errors.RuntimeException,
    )
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it would log is in its errors
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as error:
        reason = one_line(str(error), 200)
        raise ValueError(
            f"onnxruntime cannot load what was written ({reason}). Use the model's folder with PyTorch."
        ) from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor | None:
        try:
            return torch.from_numpy(session.run(None, {name: images.numpy()})[0])
        except failures:
            return None

    return run
