"""contextseg-export: a trained model as a Hub repository that carries its own code.

contextseg-export runs/streets --output streets-model --push me/streets-model
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .training.arguments import CommandError, parse, short_errors

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

PROGRAM = "contextseg-export"
DESCRIPTION = """Write a folder that transformers opens with trust_remote_code=True where contextseg is not installed: weights,
settings, image processor, code, scores and model card. A second Python that cannot import contextseg proves it."""

# What the second Python runs: arguments are the folder, and a file of an image and of the logits that it must give.
PROOF = """
import sys
sys.modules["contextseg"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
folder, case = sys.argv[1:]
case = torch.load(case, weights_only=True)
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(case["image"], return_tensors="pt")).logits
if not torch.equal(logits, case["logits"]):
    sys.exit(f"logits differ by up to {(logits - case['logits']).abs().max():.3g}")
"""


@dataclass
class ExportArguments:
    model: str  # a run of contextseg-train (its best/ is used), a folder of save_pretrained, or a Hub name
    # Output
    output: str = ""  # folder to write; a README.md in it keeps what you wrote around the library's part
    push: str | None = None  # upload it as this repository, such as me/streets (log in first: hf auth login)
    private: bool = False  # make a new repository on the Hub private
    license: str | None = None  # licence of the weights, in the Hub's spelling
    # Proof
    proof: bool = True  # write without opening the result in a second Python
    traceback: bool = False  # show where in the code an error came from


def main(argv: list[str] | None = None) -> int:
    arguments = parse(ExportArguments, argv, PROGRAM, DESCRIPTION)
    with short_errors(PROGRAM, arguments.traceback):
        export(arguments)
    return 0


def export(arguments: ExportArguments) -> None:
    """Writes the repository, proves that it stands alone, and uploads it if asked."""
    from ..hub import upload
    from .training.models import open_model

    if not arguments.output:
        raise ValueError("--output is missing. Give the folder to write, such as --output streets-model.")
    folder = Path(arguments.output)
    model, processor, source = open_model(arguments.model)
    export_repository(model, processor, folder, records_of=Path(source), license=arguments.license)
    if arguments.proof:
        # Both sides read the file: where weights lie in memory decides the last bit of some matrix products.
        prove(type(model).from_pretrained(folder).eval(), processor, folder)
        print(f"{folder} opens without contextseg and gives the same bits")
    print(f"wrote {len([path for path in folder.iterdir() if path.is_file()])} files to {folder}")
    if arguments.push:
        commit = upload(
            folder, arguments.push, private=arguments.private, commit_message="Export from contextseg"
        )
        print(f"pushed to {commit.repo_url}")


def export_repository(
    model: "PreTrainedModel",
    processor: "BaseImageProcessor",
    folder: Path,
    records_of: Path,
    license: str | None = None,
) -> None:
    """Saves both with their code, and the scores and recipe of the run that they come from."""
    from ..hub import complete_card
    from ..model_card import RECORDS, read_settings, without_own_folders
    from .training.records import write_json

    folder.mkdir(parents=True, exist_ok=True)
    for record in RECORDS:
        content = read_settings(records_of / record) or read_settings(records_of.parent / record)
        if content:
            write_json(folder / record, without_own_folders(content))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    complete_card(folder, license=license)


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
        command = [sys.executable, "-I", "-c", PROOF, str(folder.resolve()), str(case)]
        finished = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise CommandError(
            f"{folder} was written, but a Python without contextseg cannot use it: {last}. "
            "Please report this with the model's config.json; --no-proof skips this check."
        )


if __name__ == "__main__":
    sys.exit(main())
