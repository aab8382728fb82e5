"""contextseg-mosaic: puts the tiles of FLAIR-HUB together to one virtual mosaic per area.

    contextseg-mosaic FLAIR-HUB --split-file train.csv --output mosaics/train

Heavy imports follow the parsing of the command line, so that `--help` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path

from ..training.command_line import CommandLine, CommandOptions, option, positional, required, short_errors
from ..training.interruption import interruptible

PROGRAM = "contextseg-mosaic"
DESCRIPTION = """Write a folder with images/, masks/ and classes.json, in which each area of FLAIR-HUB is one image: a virtual
mosaic (VRT) of its 512-pixel tiles. The mosaics hold no pixels: the tiles must stay where they are."""


@dataclass
class MosaicArguments(CommandOptions):
    data: str = positional("folder of FLAIR-HUB, with folders such as D004-2021_AERIAL_RGBI")
    output: str = required("folder to write", metavar="FOLDER")
    split_file: str | None = option(
        None,
        "CSV or text file with the path or name of a tile in each row (default: all tiles)",
        metavar="FILE",
    )


def new_parser() -> CommandLine:
    return CommandLine(MosaicArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        from ..processing.data.tile_mosaics import write_flair_mosaics

        split_file = arguments.split_file and Path(arguments.split_file)
        number = write_flair_mosaics(Path(arguments.data), Path(arguments.output), split_file, progress=True)
    print(f"{number} areas in {arguments.output}. Check them with: contextseg-check {arguments.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
