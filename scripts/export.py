"""contextseg-export: a trained model as a Hub repository that includes its code.

contextseg-export runs/streets --push me/streets
contextseg-export runs/streets --output streets-model
contextseg-export runs/streets --space streets-space
"""

import sys

from ..training.command_line import CommandLine, short_errors
from ..training.publishing import PROGRAM, ExportArguments, export

DESCRIPTION = """Make a repository of a trained model, on the Hub or in a folder, that transformers loads with
trust_remote_code=True without contextseg being installed: weights, configuration, image processor, code, scores, model card and
an example image. The result is checked in a second Python process that cannot import contextseg."""


def new_parser() -> CommandLine:
    return CommandLine(ExportArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        export(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
