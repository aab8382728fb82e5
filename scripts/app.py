"""contextseg-app: a page in the browser to look at images through the eyes of a model.

contextseg-app runs/streets
contextseg-app runs/streets runs/other --examples photos/
"""

import sys

from ..app.options import AppArguments
from ..training.command_line import CommandLine, short_errors
from ..training.interruption import interruptible

PROGRAM = "contextseg-app"
DESCRIPTION = """Serve a page on this machine: drop an image to see its mask, confidence and entropy; click a pixel to see where the model
looks (global attention or Grad-CAM); compare two models; download mask and overlay. Nothing leaves the machine. Needs the extra
[app]."""


def new_parser() -> CommandLine:
    return CommandLine(AppArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        from ..app.server import serve

        serve(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
