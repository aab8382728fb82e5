"""Options of `contextseg-app`. Nothing heavy is imported here, so that `--help` answers at once."""

from dataclasses import dataclass

from ..training.command_line import CommandOptions, option, positional
from ..training.inference_options import InferenceOptions
from ..training.reading_options import PixelOptions

MOST_MODELS = 2


@dataclass
class AppArguments(CommandOptions, PixelOptions, InferenceOptions):
    models: list[str] = positional(
        "one model, or two to compare: a run of contextseg-train (its best/ is used), a folder written by save_pretrained, or a "
        "name on the Hub"
    )
    examples: list[str] = option(
        [],
        "image files, and folders of them, to choose from on the page (default: validation images of the run)",
        metavar="IMAGE",
    )
    host: str = option(
        "127.0.0.1",
        "address on which the page is served; with 0.0.0.0, everybody who reaches this machine can use it",
        metavar="ADDRESS",
    )
    port: int | None = option(None, "port of the page (default: the first free one from 7860)")
    cpu: bool = option(False, "run on the CPU even if there is a GPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) > MOST_MODELS:
            raise ValueError(f"{len(self.models)} models are given. Give one, or two to compare.")
