"""Implementation of `contextseg-export`: a trained model as a Hub repository that includes its code."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .command_line import MODEL_HELP, CommandError, CommandOptions, option, positional
from .file_exports import FileOptions, check_files, write_files

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    from .models import ModelKind

PROGRAM = "contextseg-export"


@dataclass
class ExportArguments(CommandOptions, FileOptions):
    model: str = positional(MODEL_HELP)
    push: str | None = option(
        None,
        "repository on the Hub, such as me/streets, to upload to (log in first: hf auth login)",
        metavar="NAME",
    )
    private: bool = option(False, "make a new repository on the Hub private")
    output: str = option(
        "", "folder to write; text that you have added to its README.md is kept", metavar="FOLDER"
    )
    license: str | None = option(
        None,
        "license of the weights, in the Hub's spelling, such as apache-2.0 (default: that of their card or run)",
    )
    example: str | None = option(
        None, "image to publish on the model card as an example (default: a generated scene)", metavar="FILE"
    )
    proof: bool = option(True, "check that the result works in a second Python process without contextseg")


def export(arguments: ExportArguments) -> None:
    """Writes the repository, checks that it works without contextseg, and uploads it, or writes files for other runtimes.

    Raises:
        ImportError: If a package that an ONNX file needs is missing.
        ValueError: If nothing to write is named, the model does not exist, or a file cannot be written.
        CommandError: If the check or the upload fails.
    """
    check_targets(arguments)
    if arguments.output:
        export_to(Path(arguments.output), arguments)
    elif arguments.push:
        with TemporaryDirectory() as folder:
            export_to(Path(folder), arguments)
    if arguments.onnx or arguments.pt2:
        write_files(arguments.model, arguments)


def check_targets(arguments: ExportArguments) -> None:
    """Raises an error before the model is loaded: nothing to write is named, or a file cannot be written."""
    check_files(arguments.model, arguments)
    if not (arguments.output or arguments.push or arguments.onnx or arguments.pt2):
        raise ValueError(
            "--push, --output, --onnx and --pt2 are missing. Name the repository to push to, such as --push me/streets, the "
            "folder to write, such as --output streets-model, or the file, such as --onnx streets.onnx."
        )


def export_to(folder: Path, arguments: ExportArguments) -> None:
    """Writes the repository to `folder`, then checks and uploads it."""
    from ..hub.errors import ProofError
    from ..hub.export import export_repository, prove
    from ..hub.model_card import ask_for_license
    from ..processing.data.scenes import draw_scene

    model, processor, source = open_trained(arguments.model)
    export_repository(
        model,
        processor,
        folder,
        Path(source),
        license=arguments.license,
        example=arguments.example,
        draw_example=lambda: draw_scene(seed=0, index=0, size=256).image,
    )
    if arguments.proof:
        try:
            # Both sides load the saved file: where weights lie in memory affects the last bit of some products.
            saved = type(model).from_pretrained(folder).eval()
            prove(saved, processor, folder, kind_of(model.config).auto_class.__name__)
        except ProofError as error:
            raise CommandError(str(error)) from error
        print("checked: it loads without contextseg, and its logits are bit-identical")
    if arguments.output:
        print(f"wrote {len([path for path in folder.iterdir() if path.is_file()])} files to {folder}")
    if arguments.push:
        push(folder, arguments)
    else:
        ask_for_license(folder)


def push(folder: Path, arguments: ExportArguments) -> None:
    """Uploads `folder`. If that fails, the error names the command that repeats it."""
    from ..hub.errors import HubError
    from ..hub.repositories import upload
    from .origin import as_options

    try:
        commit = upload(
            folder,
            arguments.push,
            license=arguments.license,
            private=arguments.private or None,
            commit_message="Export from contextseg",
        )
    except HubError as error:
        again = shlex.join([PROGRAM, *as_options(arguments, ExportArguments(arguments.model))])
        raise CommandError(f"{error} The command: {again}") from error
    print(f"pushed to {commit.repo_url}")


def open_trained(name: str) -> tuple["PreTrainedModel", "BaseImageProcessor", str]:
    """Opens a trained model of any task.

    Args:
        name: A run folder, a folder written by `save_pretrained`, or a name on the Hub.

    Returns:
        The model in evaluation mode, its image processor, and the folder or name that they were loaded from.
    """
    from transformers import AutoConfig

    from .checkpoints import model_folder
    from .model_files import check_model_files, load_model, load_processor
    from .model_names import explained_absence

    source = model_folder(name)
    check_model_files(Path(source))
    with explained_absence(source):
        model = load_model(kind_of(AutoConfig.from_pretrained(source)).auto_class, source)
        return model, load_processor(source), source


def kind_of(config: "PreTrainedConfig") -> "ModelKind":
    """Returns the kind of a saved model, from the name of its class."""
    from .models import task_of_config
    from .tasks import task_of

    return task_of(task_of_config(config)).models
