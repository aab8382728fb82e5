"""Files of `contextseg-export` for other runtimes: ONNX, in 8 bits too, and torch.export."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .command_line import option

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

    from ..hub.served_files import ServedFile


@dataclass(kw_only=True)
class FileOptions:
    """Options of these files: one group of `contextseg-export`."""

    _argument_group_name = "Files for other runtimes"

    onnx: str = option(
        "",
        "ONNX file to write, for images of any number and size; checked in onnxruntime, which takes a minute or more",
        metavar="FILE",
    )
    pt2: str = option(
        "",
        "torch.export file to write, for images of any number and size; checked after loading",
        metavar="FILE",
    )
    with_processing: bool = option(
        False,
        "with --onnx or --pt2: put normalization and the choice of the class inside, so that the file takes images as bytes "
        "and returns class ids",
    )
    int8: bool = option(
        False, "with --onnx: weights and activations of 8 bits, calibrated and compared on images of --data"
    )
    data: str = option(
        "",
        "with --int8: images and masks, as for contextseg-evaluate; some calibrate, the others score",
        metavar="FOLDER",
    )


OPTION_OF_SUFFIX = {".onnx": "--onnx", ".pt2": "--pt2"}


def check_files(model: str, arguments: FileOptions) -> None:
    """Raises an error before the model is loaded if a file that is named cannot be written."""
    options = {"--onnx": arguments.onnx, "--pt2": arguments.pt2}
    files = {option: Path(file) for option, file in options.items() if file}
    if arguments.with_processing and not files:
        raise ValueError("--with-processing is for a file. Name it, such as --onnx streets.onnx.")
    check_int8(arguments)
    if not files:
        return
    from ..hub.onnx_export import load_onnxruntime
    from ..hub.served_files import check_new_file
    from ..processing.mask_models import is_mask_model
    from ..processing.volumes.volume_inference import takes_volumes
    from .models import config_of_model, task_of_config

    for option_name, file in files.items():
        check_new_file(file)
        other = OPTION_OF_SUFFIX.get(file.suffix, option_name)
        if other != option_name:
            raise ValueError(
                f"{option_name} {file}: files of {other} end like this. Use {other}, or another name."
            )
    if arguments.onnx:
        load_onnxruntime()
    config = config_of_model(model)
    task = "volumes" if takes_volumes(config) else task_of_config(config)
    task = "mask classification" if is_mask_model(config) else task
    if task != "segmentation":
        raise ValueError(
            f"{model} is for {task.replace('_', ' ')}, and {next(iter(files))} takes segmenters of images. Use "
            "--output or --push, whose repository transformers loads."
        )


def check_int8(arguments: FileOptions) -> None:
    """Raises ValueError unless `--int8`, `--onnx` and `--data` are given together."""
    if arguments.int8 and not arguments.onnx:
        raise ValueError("--int8 is for an ONNX file. Name it, such as --onnx streets.onnx.")
    if arguments.int8 and not arguments.data:
        raise ValueError("--int8 needs images to calibrate with. Give their folder, such as --data data/val.")
    if arguments.data and not arguments.int8:
        raise ValueError("--data is for --int8. Give both, or leave it out.")


def write_files(model: str, arguments: FileOptions) -> None:
    """Writes the files that are named, and prints what they take and return."""
    from ..hub.onnx_export import export_onnx
    from ..hub.pt2_export import export_pt2
    from ..hub.served_processing import crop_rule, resize_rule
    from .models import open_model

    trained, processor, _ = open_model(model)
    trained = trained.float()  # some checkpoints are in bfloat16
    if arguments.onnx:
        announce(arguments.onnx)
        if arguments.int8:
            write_int8(trained, processor, model, arguments)
        else:
            written = export_onnx(trained, processor, arguments.onnx, arguments.with_processing)
            tell(written, f" (opset {written.opset})", "in onnxruntime")
    if arguments.pt2:
        announce(arguments.pt2)
        tell(export_pt2(trained, processor, arguments.pt2, arguments.with_processing), "", "after loading")
    if size := resize_rule(processor):
        print(f"the image processor resizes images by {size}; callers of the file do that themselves")
    if size := crop_rule(processor):
        print(f"it then cuts out the middle {size}; callers of the file do that themselves")


def announce(file: str) -> None:
    """Says that a file takes time."""
    print(f"writing {file}: tracing takes a minute or more", flush=True)


def tell(written: "ServedFile", detail: str, where: str) -> None:
    """Prints what was written, and how it was checked."""
    multiple = "" if written.multiple == 1 else f"; height and width in multiples of {written.multiple}"
    print(f"wrote {written.path}{detail}: {written.signature}{multiple}")
    tell_check(written, where)


def tell_check(written: "ServedFile", where: str) -> None:
    """Prints how a file was checked."""
    from ..hub.served_files import CHECKED

    print(
        f"checked {where} with images of {len(CHECKED)} other sizes: the largest difference from PyTorch is "
        f"{written.difference:.1e} of the logits' range"
    )


def write_int8(
    model: "PreTrainedModel", processor: "BaseImageProcessor", source: str, arguments: FileOptions
) -> None:
    """Writes the ONNX file in 8 bits, compares it with the float file, and prints what that says.

    `source` is the name of the model as given.
    """
    from ..hub.int8_onnx import quantize_onnx
    from ..hub.onnx_export import export_onnx
    from .int8_comparison import LabeledInputs, compared

    labeled = LabeledInputs(source, arguments.data, model, processor, arguments.with_processing)
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        exact = export_onnx(model, processor, plain, arguments.with_processing)
        tell_check(exact, "the float file in onnxruntime")
        if exact.multiple > 1:
            raise ValueError(
                f"the file of {source} takes only heights and widths in multiples of {exact.multiple}, and --int8 runs it on "
                "images of any size. Leave out --int8."
            )
        written = quantize_onnx(plain, arguments.onnx, labeled.samples())
        stays = (
            f"; these hurt and stay float: {', '.join(written.float_layers)}" if written.float_layers else ""
        )
        print(
            f"wrote {written.path}: {exact.signature}; {written.layers} convolutions and linear layers in 8 bits{stays}. "
            f"{100 * written.agreement:.1f} % of the pixels of the calibration images keep their class"
        )
        print(compared(plain, written.path, labeled))
