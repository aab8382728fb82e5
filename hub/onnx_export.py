"""A segmenter as one ONNX file for images of any size, checked in onnxruntime at sizes that the exporter never saw.

The file runs without PyTorch. It takes what the image processor makes of images and returns logits, or, with
the processing inside, images as bytes and returns class ids.

Legend: B batch, C channels, K classes, H, W pixels, h, w cells of the logits.
"""

import json
import math
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
from ..processing.image_processor_options import UnusedSize
from ..processing.palettes import class_colors
from ..processing.plain_text import one_line
from .served_segmenters import ServedIds, ServedLogits, ServedSegmenter

if TYPE_CHECKING:
    from types import ModuleType

OPSET = 18  # that of torch's translations; newer ones are converted from it
TRACED = (2, 768, 1024)  # images without content, so their size costs nothing; several windows in every stage
CHECKED = ((1, 160, 224), (3, 224, 96), (2, 203, 261), (1, 333, 187))  # images, height, width
MULTIPLES = (1, 32)  # of the sides: encoders of other libraries may be translated for whole cells alone
TOLERANCE = 1e-3  # of the logits' range
INSTALL_ONNX = "ONNX files need onnx, onnxscript and onnxruntime. Run: pip install 'contextseg[onnx]'"


@dataclass(frozen=True)
class OnnxFile:
    """What `export_onnx` wrote, and how far its results are from PyTorch's."""

    path: Path
    signature: str  # names, shapes and types of input and output
    difference: float  # the largest at the checked sizes, as a share of the logits' range
    multiple: int = 1  # heights and widths that the file takes are multiples of it
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


def check_new_file(path: Path) -> None:
    """Raises ValueError if the file exists, or its folder does not."""
    if path.exists():
        raise ValueError(f"{path} already exists. Delete it, or give the name of a new file.")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist. Make it, or give another path.")


def export_onnx(
    model: PreTrainedModel, processor: BaseImageProcessor, path: str | Path, with_processing: bool = False
) -> OnnxFile:
    """Writes a segmenter of images as an ONNX file (opset 18) with free batch, height and width, and checks it.

    The metadata of the file holds as JSON `labels` (names by id), `palette` (one color per class), `image_mean`,
    `image_std` and `rescale_factor` of the processor, and `size`, to which the caller resizes images (or null);
    also `multiple_of` if the sides of images must be multiples of a number, which some encoders of other libraries need.

    Args:
        model: The segmenter, on the CPU.
        processor: Its image processor.
        path: The new file.
        with_processing: Whether normalization, the resizing of the logits and the choice of the class are inside.
            Input `images` (B, H, W, C) uint8, output `ids` (B, H, W) int32. Default: input `pixel_values`
            (B, C, H, W) float32, output `logits` (B, K, h, w) float32.

    Returns:
        The largest difference from PyTorch, and of what the sides of images must be multiples (mostly 1).

    Raises:
        ImportError: If a package of the extra `[onnx]` is missing.
        ValueError: If the file exists, its folder does not, the model cannot be translated, or onnxruntime's
            results differ from PyTorch's by more than 1e-3 of the logits' range. No file is left then.
    """
    path = Path(path)
    check_new_file(path)
    runtime = load_onnxruntime()
    served = (ServedIds if with_processing else ServedLogits)(model, processor).eval()
    program = translated(served)
    program.model.metadata_props.update(metadata(model, processor))
    with atomic_write(path) as writing:
        program.save(str(writing))
        run = running(runtime, writing)
        for multiple in MULTIPLES:
            difference = largest_difference(served, run, multiple)
            if difference <= TOLERANCE:
                break
        else:
            raise ValueError(
                f"{path} was not written: results of onnxruntime differ from PyTorch's by {difference:.1e} of the "
                f"logits' range, more than {TOLERANCE:g}. Use the model's folder with PyTorch."
            )
        if multiple > 1:
            program.model.metadata_props["multiple_of"] = str(multiple)
            program.save(str(writing))
    return OnnxFile(path, served.signature(), difference, multiple)


def translated(served: ServedSegmenter) -> Any:
    """The module as torch's ONNXProgram for any number and size of images. Raises ValueError if that fails."""
    axes = dict(zip(served.free_axes, ("batch", "height", "width"), strict=True))
    try:
        with torch.no_grad(), redirect_stdout(StringIO()):  # its progress
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


def metadata(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    """What the file says of itself, as JSON."""
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    facts = {
        "labels": labels,
        "palette": class_colors(getattr(processor, "palette", None), len(labels)),
        **{name: getattr(processor, name) for name in ("image_mean", "image_std", "rescale_factor")},
        "size": resize_rule(processor),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def resize_rule(processor: BaseImageProcessor) -> dict[str, int] | None:
    """The size that a processor resizes images to, such as {"height": 512, "width": 512}; None if it does not."""
    size, resizes = processor.size, processor.do_resize
    if not (not isinstance(size, UnusedSize) if resizes is None else resizes):
        return None
    return {name: side for name, side in dict(size).items() if side is not None}


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


def largest_difference(
    served: ServedSegmenter, run: Callable[[Tensor], Tensor | None], multiple: int = 1
) -> float:
    """How far results are from PyTorch's, as a share of the logits' range; infinite for another shape or none.

    Args:
        served: What the file holds.
        run: The file, see `running`.
        multiple: To what the sides of the checked sizes are rounded up.
    """
    differences = []
    for count, *sides in CHECKED:
        images = served.images(count, *(-(-side // multiple) * multiple for side in sides))
        result = run(images)
        with torch.no_grad():
            differences.append(math.inf if result is None else served.difference(images, result))
    return max(differences)
