"""A segmenter as one file of torch.export for images of any size, which PyTorch runs without contextseg."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.atomic_write import atomic_write
from ..processing.plain_text import one_line
from .any_size import for_any_size
from .served_files import TRACED, ServedFile, check_new_file, checked, metadata, served
from .served_segmenters import ServedSegmenter


def export_pt2(
    model: PreTrainedModel, processor: BaseImageProcessor, path: str | Path, with_processing: bool = False
) -> ServedFile:
    """Writes a segmenter of images as a file of `torch.export` with free batch, height and width, and checks it.

    `torch.export.load(path, extra_files=facts)` fills in the values of a dict `facts` with keys such as `labels` and
    `palette`: as JSON, what `export_onnx` writes under these names.

    Args:
        model: The segmenter, in float32 on the CPU.
        processor: Its image processor.
        path: The new file.
        with_processing: Whether normalization, the resizing of the logits and the choice of the class are inside.
            Takes images (B, H, W, C) uint8 and returns ids (B, H, W) int32. Default: takes pixel_values (B, C, H, W)
            float32 and returns logits (B, K, h, w) float32.

    Returns:
        The largest difference from the model, and of what the sides of images must be multiples (mostly 1).

    Raises:
        ValueError: If the file exists, its folder does not, the model is not a segmenter of images of any size or
            cannot be traced, the processing cannot be inside, or results differ from the model's by more than 1e-3 of
            the logits' range at sizes other than the traced one. No file is left then.
    """
    path = Path(path)
    check_new_file(path)
    module = served(model, processor, with_processing)
    program = traced(module)
    facts = metadata(model, processor)
    with atomic_write(path) as writing:
        save(program, writing, facts)
        difference, multiple = checked(module, running(writing), path)
        if multiple > 1:
            save(program, writing, facts | {"multiple_of": str(multiple)})
    return ServedFile(path, module.signature(), difference, multiple)


def traced(module: ServedSegmenter) -> torch.export.ExportedProgram:
    """The module for any number and size of images. Raises ValueError if it cannot be traced."""
    free = dict.fromkeys(module.free_axes, torch.export.Dim.AUTO)
    try:
        with torch.no_grad(), for_any_size(module.model):
            program = torch.export.export(
                module, (module.images(*TRACED),), dynamic_shapes=(free,), strict=False
            )
    except (RuntimeError, torch._dynamo.exc.UserError) as error:
        raise ValueError(
            f"a {type(module.model).__name__} like this cannot be traced by torch.export ({one_line(str(error), 200)}). Use "
            "its folder with PyTorch."
        ) from error
    program.example_inputs = None  # the file would hold these 19 MB
    return program


def save(program: torch.export.ExportedProgram, path: Path, facts: dict[str, str]) -> None:
    """Writes a program; `facts` become files inside the archive."""
    with path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file, extra_files=facts)


def running(path: Path) -> Callable[[Tensor], Tensor | None]:
    """The file as a function of its input, which returns None for a size that its guards refuse."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor | None:
        try:
            with torch.no_grad():
                return module(images)
        except (RuntimeError, AssertionError):
            return None

    return run
