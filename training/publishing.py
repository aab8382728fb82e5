"""A trained model as a Hub repository that carries its own code: what `contextseg-export` does."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .command_line import CommandError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    from .models import ModelKind

PROGRAM = "contextseg-export"
EXAMPLE_SIDE = 512
TASKS = {"ForImageClassification": "classification", "ForObjectDetection": "detection"}

# What the second Python runs: arguments are the Auto class, the folder, and a file of an image and the logits that it must give.
PROOF = """
import sys
sys.modules["contextseg"] = None
import torch, transformers
auto_class, folder, case = sys.argv[1:]
case = torch.load(case, weights_only=True)
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(case["image"], return_tensors="pt")).logits
if not torch.equal(logits, case["logits"]):
    sys.exit(f"logits differ by up to {(logits - case['logits']).abs().max():.3g}")
"""


@dataclass
class ExportArguments:
    model: str  # a run of contextseg-train (its best/ is used), a folder of save_pretrained, or a Hub name
    # Output
    push: str | None = None  # upload it as this repository, such as me/streets (log in first: hf auth login)
    private: bool = False  # make a new repository on the Hub private
    output: str = ""  # folder to write; a README.md in it keeps what you wrote around the library's part
    license: str | None = None  # licence of the weights, in the Hub's spelling
    example: str | None = None  # PICTURE: shown on the model's page, so public (default: a generated scene)
    # Proof
    proof: bool = True  # write without opening the result in a second Python
    traceback: bool = False  # show where in the code an error came from


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
    model, processor, source = open_trained(arguments.model)
    export_repository(model, processor, folder, Path(source), arguments.license, arguments.example)
    if arguments.proof:
        # Both sides read the file: where weights lie in memory decides the last bit of some matrix products.
        prove(type(model).from_pretrained(folder).eval(), processor, folder)
        print("it opens without contextseg and gives the same bits")
    if arguments.output:
        print(f"wrote {len([path for path in folder.iterdir() if path.is_file()])} files to {folder}")
    if arguments.push:
        push(folder, arguments)


def push(folder: Path, arguments: ExportArguments) -> None:
    from ..hub.errors import HubError
    from ..hub.repositories import upload
    from .origin import words

    try:
        commit = upload(
            folder, arguments.push, private=arguments.private or None, commit_message="Export from contextseg"
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


def export_repository(
    model: "PreTrainedModel",
    processor: "BaseImageProcessor",
    folder: Path,
    records_of: Path,
    license: str | None = None,
    example: str | None = None,
) -> None:
    """Saves both with their code, the scores and record of the run that they come from, and a picture to try."""
    from ..hub.model_card import RECORDS, read_settings, without_own_folders
    from ..hub.repositories import complete_card
    from .records import write_json

    folder.mkdir(parents=True, exist_ok=True)
    for record in RECORDS:
        content = read_settings(records_of / record) or read_settings(records_of.parent / record)
        if content:
            write_json(folder / record, without_own_folders(content))
    write_example(folder, example, getattr(model.config, "num_channels", 3))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    complete_card(folder, license=license)


def write_example(folder: Path, picture: str | None, num_channels: int) -> None:
    """The picture on the model's page: one that was given, or a generated scene, for nobody's data is made public unasked."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ..hub.model_card import EXAMPLE_NAME
    from ..processing.data.scenes import draw_scene
    from ..processing.image_reading import read_image

    if num_channels != 3:
        if picture:
            raise ValueError(
                f"--example is an RGB picture, but the model reads {num_channels} bands. Leave it out."
            )
        return
    if picture is None and (folder / EXAMPLE_NAME).exists():
        return
    title = PngInfo()
    if picture:
        pixels = np.asarray(read_image(picture))  # and nothing else: a photo's file tells where it was taken
    else:
        pixels = draw_scene(seed=0, index=0, size=256).image
        title.add_text("Title", "Generated scene, not of the training data")
    image = Image.fromarray(pixels)
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    image.save(folder / EXAMPLE_NAME, pnginfo=title)


def prove(model: "PreTrainedModel", processor: "BaseImageProcessor", folder: Path) -> None:
    """Opens the folder in a Python that cannot import contextseg, and compares the logits of one image bit for bit."""
    import torch

    shape = (getattr(model.config, "num_channels", 3), 96, 128)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
    with TemporaryDirectory() as elsewhere:
        case = Path(elsewhere) / "case.pt"
        torch.save({"image": image, "logits": logits}, case)
        auto_class = kind_of(model.config).auto_class.__name__
        command = [sys.executable, "-I", "-c", PROOF, auto_class, str(folder.resolve()), str(case)]
        finished = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise CommandError(
            f"{folder} was written, but a Python without contextseg cannot use it: {last}. "
            "Please report this with the model's config.json; --no-proof skips this check."
        )
