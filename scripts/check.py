"""contextseg-check: checks every image and mask of a dataset before training.

    contextseg-check data/train

Heavy imports follow the parsing of the command line, so that `--help` answers at once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.command_line import CommandLine, CommandOptions, option, positional, short_errors
from ..training.interruption import interruptible
from ..training.reading_options import ReadingOptions

if TYPE_CHECKING:
    from ..processing.data.report import CheckReport

PROGRAM = "contextseg-check"
DESCRIPTION = """Read all images and masks of a dataset and report pairs, sizes, class shares, unknown ids and unreadable
files. Exits with 1 if there is a problem that would stop training. A folder of splits (train/, val/) is checked split by split."""


@dataclass
class CheckArguments(CommandOptions, ReadingOptions):
    data: str = positional(
        "folder with images/ and masks/, folder of such folders, or NAME:SPLIT of a dataset for `datasets`"
    )
    sample: int | None = option(None, "number of pairs to check, spread evenly over the data (default: all)")
    json: bool = option(False, "print the report as JSON")


def new_parser() -> CommandLine:
    return CommandLine(CheckArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        reports = [check(source, arguments) for source in splits(arguments.data)]
    if arguments.json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))
    else:
        print("\n\n".join(report.text() for report in reports))
        if arguments.words():
            print(f"train with the same options:{arguments.words()}")
    return int(any(report.problems for report in reports))


def splits(source: str) -> list[str]:
    """Returns the folder, its subfolders with images/ and masks/, or the splits of a dataset, published or for `datasets`."""
    from ..processing.data.dataset_rows import split_names
    from ..processing.data.official_layouts import sources_of_splits
    from ..processing.data.pairing import folders_of_pairs

    folder = Path(source)
    if official := sources_of_splits(source):
        return official
    if (folder / "images").is_dir() or not folder.is_dir():
        return [source]
    if inside := folders_of_pairs(folder):
        return [str(sub) for sub in inside]
    return [f"{source}:{name}" for name in split_names(folder)] or [source]


def check(source: str, arguments: CheckArguments) -> "CheckReport":
    """Checks one split."""
    from ..processing.data.datasets import open_data
    from ..processing.data.report import check_data

    dataset = open_data(source, needs_all_pairs=False, **arguments.keywords())
    return check_data(dataset, arguments.sample, name=source, progress=True)


if __name__ == "__main__":
    sys.exit(main())
