"""A trained model as a Hub repository that carries its own code: what `contextseg-export` does."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .command_line import MODEL_HELP, CommandError, CommandOptions, option, positional

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    from .models import ModelKind

PROGRAM = "contextseg-export"
TASKS = {"ForImageClassification": "classification", "ForObjectDetection": "detection"}


@dataclass
class ExportArguments(CommandOptions):
    model: str = positional(MODEL_HELP)
    push: str | None = option(
        None,
        "repository on the Hub, such as me/streets, to upload to (log in first: hf auth login)",
        metavar="NAME",
    )
    private: bool = option(False, "make a new repository on the Hub private")
    output: str = option("", "folder to write; text that you added to its README.md is kept")
    license: str | None = option(
        None,
        "license of the weights, in the Hub's spelling, such as apache-2.0 (default: that of their card or run)",
    )
    example: str | None = option(
        None, "image to show on the model's page, and so to publish (default: a generated scene)"
    )
    proof: bool = option(True, "check that a second Python without contextseg can use the result")


def export(arguments: ExportArguments) -> None:
    """Writes the repository, proves that it stands alone, and uploads it if asked."""
    if not (arguments.output or arguments.push):
        raise ValueError(
            "--push and --output are missing. Name the repository to push to, such as --push me/streets, or the folder "
            "to write, such as --output streets-model."
        )
    if arguments.output:
        export_to(Path(arguments.output), arguments)
    else:
        with TemporaryDirectory() as folder:
            export_to(Path(folder), arguments)


def export_to(folder: Path, arguments: ExportArguments) -> None:
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
            # Both sides read the file: where weights lie in memory decides the last bit of some matrix products.
            saved = type(model).from_pretrained(folder).eval()
            prove(saved, processor, folder, kind_of(model.config).auto_class.__name__)
        except ProofError as error:
            raise CommandError(str(error)) from error
        print("it opens without contextseg and gives the same bits")
    if arguments.output:
        print(f"wrote {len([path for path in folder.iterdir() if path.is_file()])} files to {folder}")
    if arguments.push:
        push(folder, arguments)
    else:
        ask_for_license(folder)


def push(folder: Path, arguments: ExportArguments) -> None:
    from ..hub.errors import HubError
    from ..hub.repositories import upload
    from .origin import words

    try:
        commit = upload(
            folder,
            arguments.push,
            license=arguments.license,
            private=arguments.private or None,
            commit_message="Export from contextseg",
        )
    except HubError as error:
        again = shlex.join([PROGRAM, *words(arguments, ExportArguments(arguments.model))])
        raise CommandError(f"{error} The command: {again}") from error
    print(f"pushed to {commit.repo_url}")


def open_trained(name: str) -> tuple["PreTrainedModel", "BaseImageProcessor", str]:
    """The model of a run, a folder or a Hub name, in the class that was saved; its processor; and where they came from."""
    from transformers import AutoConfig, AutoImageProcessor

    from .checkpoints import model_folder

    source = model_folder(name)
    model = kind_of(AutoConfig.from_pretrained(source)).auto_class.from_pretrained(source)
    return model.eval(), AutoImageProcessor.from_pretrained(source), source


def kind_of(config: "PreTrainedConfig") -> "ModelKind":
    from .tasks import task_of

    architecture = (config.architectures or [""])[0]
    return task_of(
        next((task for ending, task in TASKS.items() if architecture.endswith(ending)), "segmentation")
    ).models
