"""Command lines from dataclasses, by transformers' HfArgumentParser.

    @dataclass
    class Arguments(CommandOptions, InferenceOptions):
        images: list[str] = positional("image files, and folders of them")
        output: str = option("masks", "folder for the masks")

A dataclass with an `_argument_group_name` is a group of the help text. Neither this module nor the dataclasses import torch,
so that `--help` and a misspelt option are answered without waiting for it.
"""

import argparse
import dataclasses
import difflib
import errno
import re
import shutil
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import takewhile
from typing import Any

from transformers import HfArgumentParser

WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited)")
NUMBERS = {int: "N", float: "X"}  # what a value is called in the help text
MODEL_HELP = "run of contextseg-train (its best/ is used), folder of save_pretrained, or name on the Hub"


class CommandError(RuntimeError):
    """Something went wrong while a command ran, and its message says what to do."""


def option(default: Any, text: str, **settings: Any) -> Any:
    """A field that is the option `--name`; `settings` go to `add_argument`. An option with a list may be repeated."""
    metadata = {"help": text, **settings}
    if isinstance(default, list):
        return dataclasses.field(
            default_factory=lambda: list(default), metadata={"action": "extend", **metadata}
        )
    return dataclasses.field(default=default, metadata=metadata)


def required(text: str, **settings: Any) -> Any:
    """A field that is an option which must be given."""
    return dataclasses.field(metadata={"help": text, **settings})


def positional(text: str) -> Any:
    """A field that is given by its position; several values if it is a list."""
    return dataclasses.field(metadata={"help": text, "positional": True})


@dataclasses.dataclass(kw_only=True)
class CommandOptions:
    """What every command has; the first base of its dataclass, whose options then open the help text."""

    _argument_group_name = "options"  # argparse's own

    traceback: bool = option(False, "show where in the code an error occurred")


class CommandLine(HfArgumentParser):
    """The command line of a dataclass and of the dataclasses that it is composed of.

    To transformers' parser it adds positional arguments, `--no-NAME` for every switch, the nearest option for a misspelt
    one, and the difference between an option that was given and a default.
    """

    def __init__(self, kinds: type | Sequence[type], program: str, description: str, **settings: Any) -> None:
        super().__init__(
            prog=program,
            description=description,
            allow_abbrev=False,
            formatter_class=OptionsFormatter,
            **settings,
        )
        self.known_elsewhere: list[str] = []  # options that another parser reads
        if isinstance(kinds, type):
            kinds = [*filter(dataclasses.is_dataclass, kinds.__bases__), kinds]
        self.dataclass_types = list(kinds)
        for kind in kinds:
            self._add_dataclass_arguments(kind)
        needed = [action for action in self._actions if action.required]
        places = [
            " ".join([*getattr(action, "shown", []), action.metavar or action.dest.upper()])
            for action in needed
        ]
        self.usage = " ".join(["%(prog)s", *places, "[options]"])

    def given(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The options named in `argv` (or on the command line), without the defaults of the others."""
        return vars(self.parse_args(argv))

    def arguments(self, argv: Sequence[str] | None = None) -> Any:
        """An instance of the last dataclass, filled from `argv` (or the command line)."""
        return self.dataclass_types[-1](**self.given(argv))

    def add_argument_group(self, title: str | None = None, *args: Any, **settings: Any) -> Any:
        """The group of this title, which several dataclasses may fill."""
        same = [group for group in self._action_groups if group.title == title]
        return same[0] if same else super().add_argument_group(title, *args, **settings)

    def _parse_dataclass_field(self, parser: Any, field: dataclasses.Field) -> None:
        """Adds one field to `parser`, which is a group or this parser, unless a base has brought it."""
        if any(action.dest == field.name for action in self._actions):
            return
        text = field.metadata["help"].replace("%", "%%") + default_text(field)
        names = [f"--{field.name.replace('_', '-')}", *[f"--{field.name}"] * ("_" in field.name)]
        if field.metadata.get("positional"):
            count = "+" if typing.get_origin(field.type) is list else None
            self.add_argument(field.name, metavar=field.name.upper(), nargs=count, help=text)
            return
        if field.type is bool:
            switch = argparse.BooleanOptionalAction
            action = parser.add_argument(*names, action=switch, default=argparse.SUPPRESS, help=text)
            action.shown = [f"--no-{names[0][2:]}"] if field.default else []
        else:
            super()._parse_dataclass_field(parser, field)
            action, action.shown = self._actions[-1], []
            action.default, action.help = argparse.SUPPRESS, text
            if action.choices is None:
                action.metavar = action.metavar or NUMBERS.get(action.type, field.name.upper())
        action.shown = [names[0], *action.shown]

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, after a look for misspelt options, which would otherwise be reported as missing ones."""
        args = sys.argv[1:] if args is None else [str(word) for word in args]
        known = [*self._option_string_actions, *self.known_elsewhere]
        for word in takewhile(lambda word: word != "--", args):
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                spelled_alike = [other for other in known if "_" in name or "_" not in other]
                close = difflib.get_close_matches(name, spelled_alike, n=1)
                self.error(
                    f"no option {name}" + (f", did you mean {close[0]}?" if close else "; see --help.")
                )
        return super().parse_known_args(args, namespace)


class OptionsFormatter(argparse.HelpFormatter):
    """Shows one spelling of each option, and `--no-NAME` only where it changes something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(120, shutil.get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy(action)
        shown.option_strings = getattr(action, "shown", action.option_strings)
        return super()._format_action_invocation(shown)


def default_text(field: dataclasses.Field) -> str:
    """ " (default: 4)"; nothing for an option that is off by default, and for one whose text tells its default."""
    if any(field.default is nothing for nothing in (dataclasses.MISSING, None, "", False)):
        return ""
    return f" (default: {'yes' if field.default is True else field.default})"


@contextmanager
def short_errors(program: str, with_traceback: bool = False) -> Iterator[None]:
    """Inside the block, an error that a user can cause ends the program with its message alone."""
    try:
        yield
    except BaseException as error:
        # Their variables keep the processes that load data alive, and at its end Python waits for those.
        traceback.clear_frames(error.__traceback__)
        if with_traceback or not is_expected(error):
            raise
        raise SystemExit(f"{program}: {plain_message(error)}") from error


def is_expected(error: BaseException) -> bool:
    """Whether a user can cause it."""
    return (
        isinstance(error, ValueError | OSError | CommandError)
        or is_missing_extra(error)
        or is_wrong_setting(error)
        or is_death_of_a_worker(error)
    )


def is_missing_extra(error: BaseException) -> bool:
    """A package of an optional extra is not installed, and the message names the extra."""
    return isinstance(error, ImportError) and "pip install" in str(error)


def is_wrong_setting(error: BaseException) -> bool:
    """Of a configuration: transformers wraps what its checks raise."""
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, StrictDataclassError)


def is_death_of_a_worker(error: BaseException) -> bool:
    """In torch's words; or a connection broke while something was fetched from the process that loaded it."""
    if isinstance(error, OSError | EOFError):
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return any(place.endswith("resource_sharer.py") for place in places)
    return isinstance(error, RuntimeError) and WORKER_DIED.search(str(error)) is not None


def plain_message(error: BaseException) -> str:
    """What happened and what to do; without the traceback that a process that loads data puts in front of its errors."""
    text = str(error.__cause__ if is_wrong_setting(error) else error)
    if "Original Traceback (most recent call last)" in text:
        text = re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    if is_death_of_a_worker(error):
        return (
            f"a process that loads data died ({text or 'its connection ended'}): most often memory or /dev/shm is full. Take "
            "fewer --workers (0 needs neither), or give a container more shared memory (docker run --shm-size). "
            "A training continues with --resume."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text += ". Free some space, then run the command again; a training continues with --resume."
    return text


def crop_size(text: str) -> tuple[int, int]:
    return height_and_width(text, "--crop-size")


def height_and_width(text: str, option: str) -> tuple[int, int]:
    """`"512"` -> (512, 512); `"360x480"` -> (360, 480)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} {text} is not a size. Write a number of pixels, or HEIGHTxWIDTH.")
    return int(parts[0]), int(parts[-1])
