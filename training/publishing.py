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
    handler: bool = option(
        False,
        "add a handler.py, with which an Inference Endpoint of the Hub serves the model, to what is pushed or written",
    )
    space: str = option(
        "",
        "new folder to write a Space to: a web page for the model, with the model, which runs without contextseg",
        metavar="FOLDER",
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
    if arguments.space:
        export_space(Path(arguments.space), arguments)
    if arguments.onnx or arguments.pt2:
        write_files(arguments.model, arguments)


def check_targets(arguments: ExportArguments) -> None:
    """Raises an error before the model is loaded: nothing to write is named, or something cannot be written."""
    check_files(arguments.model, arguments)
    if not (arguments.output or arguments.push or arguments.space or arguments.onnx or arguments.pt2):
        raise ValueError(
            "--push, --output, --space, --onnx and --pt2 are missing. Name the repository to push to, such as --push "
            "me/streets, the folder to write, such as --output streets-model or --space streets-space, or the file, such as "
            "--onnx streets.onnx."
        )
    check_serving(arguments)


def check_serving(arguments: ExportArguments) -> None:
    """Raises ValueError if a handler or a Space cannot be written."""
    from ..hub.serving import check_new_space, check_served
    from .models import config_of_model

    if arguments.handler and not (arguments.output or arguments.push or arguments.space):
        raise ValueError(
            "--handler adds a file to a repository. Name that, such as --push me/streets or --output streets-model."
        )
    if arguments.space:
        check_new_space(Path(arguments.space))
    asked = [
        name
        for name, is_asked in {"--handler": arguments.handler, "--space": arguments.space}.items()
        if is_asked
    ]
    for name in asked:
        config = config_of_model(arguments.model).to_dict()
        check_served(arguments.model, config, name, rgb=name == "--space")


def export_to(folder: Path, arguments: ExportArguments) -> None:
    """Writes the repository to `folder`, then checks and uploads it."""
    from ..hub.model_card import ask_for_license

    write_repository(folder, arguments)
    if arguments.output:
        print(f"wrote {len([path for path in folder.iterdir() if path.is_file()])} files to {folder}")
    if arguments.push:
        push(folder, arguments)
    else:
        ask_for_license(folder)


def export_space(folder: Path, arguments: ExportArguments) -> None:
    """Writes a Space with the model to `folder`."""
    from ..hub.model_card import ask_for_license
    from ..hub.serving import APP_NAME, MODEL_FOLDER, write_space

    processor = write_repository(folder / MODEL_FOLDER, arguments)
    write_space(folder, folder.resolve().name, processor, arguments.push)
    print(f"wrote a Space to {folder}; to try it: python {folder / APP_NAME}")
    ask_for_license(folder / MODEL_FOLDER)


def write_repository(folder: Path, arguments: ExportArguments) -> "BaseImageProcessor":
    """Writes the repository to `folder`, and checks it; returns the model's image processor."""
    from ..hub.errors import ProofError
    from ..hub.export import export_repository, prove
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
        handler=arguments.handler,
    )
    if arguments.proof:
        try:
            # Both sides load the saved file: where weights lie in memory affects the last bit of some products.
            saved = type(model).from_pretrained(folder).eval()
            prove(saved, processor, folder, kind_of(model.config).auto_class.__name__)
        except ProofError as error:
            raise CommandError(str(error)) from error
        print("checked: it loads without contextseg, and its logits are bit-identical")
    return processor


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
    from .models import check_kind

    source = model_folder(name)
    check_model_files(Path(source))
    with explained_absence(source):
        config = AutoConfig.from_pretrained(source)
        check_kind(config, kind_of(config), name)
        model = load_model(kind_of(config).auto_class, source)
        return model, load_processor(source), source


def kind_of(config: "PreTrainedConfig") -> "ModelKind":
    """Returns the kind of a saved model, from the name of its class."""
    from .models import kind_for, task_of_config
    from .tasks import task_of

    return kind_for(config, task_of(task_of_config(config)).models)
