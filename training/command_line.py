"""Command lines from dataclasses, by transformers' HfArgumentParser.

    @dataclass
    class Arguments(CommandOptions, InferenceOptions):
        images: list[str] = positional("image files, and folders of them")
        output: str = option("masks", "folder for the masks")

A dataclass with an `_argument_group_name` is a group in the help text. Neither this module nor the
dataclasses import torch, so `--help` and the error for a misspelled option come at once.
"""

import argparse
import dataclasses
import difflib
import errno
import os
import re
import shutil
import sys
import time
import traceback
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import takewhile
from typing import Any, NoReturn

from transformers import HfArgumentParser

from ..configuration.ranges import Range
from ..processing.plain_text import printable
from ..processing.progress import hide_other_bars
from .option_texts import number
from .option_values import RANGES, check_not_empty, check_option, check_options

WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited)")
PAIRS = ("--value-range", "--value_range")  # options with two numbers, which may be negative
NUMBERS = {int: "N", float: "X"}  # placeholders in the help text
LARGE = 10**6
MODEL_HELP = (
    "a run of contextseg-train (its best/ is used), a folder written by save_pretrained, or a name on the Hub"
)
SECONDS_FOR_THE_FIRST = 5.0  # to say what is wrong: a launcher kills it when another process ends


class CommandError(RuntimeError):
    """An error while a command runs; its message says what to do, and is shown without a traceback."""


def option(default: Any, text: str, **settings: Any) -> Any:
    """Declares a dataclass field that is the option `--name`.

    Args:
        default: Value when the option is not given. With a list, the option may be repeated, and values are
            appended.
        text: Help text.
        settings: Passed to `ArgumentParser.add_argument`.
    """
    metadata = {"help": text, **settings}
    if isinstance(default, list):
        return dataclasses.field(
            default_factory=lambda: list(default), metadata={"action": "extend", **metadata}
        )
    return dataclasses.field(default=default, metadata=metadata)


def required(text: str, **settings: Any) -> Any:
    """Declares a field that is a required option; `settings` as in `option`."""
    return dataclasses.field(metadata={"help": text, **settings})


def positional(text: str) -> Any:
    """Declares a field that is a positional argument; a field of type list takes one or more values."""
    return dataclasses.field(metadata={"help": text, "positional": True})


@dataclasses.dataclass(kw_only=True)
class CommandOptions:
    """Options of every command.

    The first base of a command's dataclass, so that they come first in the help text.
    """

    _argument_group_name = "options"  # argparse's own

    traceback: bool = option(False, "show where in the code an error occurred")

    def __post_init__(self) -> None:
        check_options(self)


class CommandLine(HfArgumentParser):
    """Command line of a dataclass and of the dataclasses that it inherits from.

    Extends transformers' parser by positional arguments, `--no-NAME` for every switch, a suggestion for a
    misspelled option, and the distinction between an option that was given and a default.

    Args:
        kinds: A dataclass, whose direct bases become groups of options; or the dataclasses of all groups.
        program: Name of the command.
        description: Text above the options in the help.
        settings: Passed to `ArgumentParser`.
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
        self.declared: dict[str, dataclasses.Field] = {}  # by name, with resolved types
        self.renamed: dict[str, str] = {}  # former spellings, and what took their place
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
        """Parses `argv` (default: `sys.argv`) and returns the options that it names, without defaults."""
        return vars(self.parse_args(argv))

    def arguments(self, argv: Sequence[str] | None = None) -> Any:
        """Parses `argv` (default: `sys.argv`) into an instance of the last dataclass."""
        return self.build(self.given(argv))

    def build(self, given: dict[str, Any]) -> Any:
        """Returns an instance of the last dataclass; ends the program if options contradict each other."""
        try:
            return self.dataclass_types[-1](**given)
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str) -> NoReturn:
        """Ends the program; of several processes, which are given the same options, the first says why."""
        if int(os.environ.get("RANK", 0)) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            time.sleep(SECONDS_FOR_THE_FIRST)
            self.exit(2)
        super().error(message)

    def add_argument_group(self, title: str | None = None, *args: Any, **settings: Any) -> Any:
        """Returns the group with this title, creating it if needed: several dataclasses may share one."""
        same = [group for group in self._action_groups if group.title == title]
        return same[0] if same else super().add_argument_group(title, *args, **settings)

    def _parse_dataclass_field(self, parser: Any, field: dataclasses.Field) -> None:
        """Adds a field to `parser`, a group or this parser, unless a base has added it already."""
        if any(action.dest == field.name for action in self._actions):
            return
        self.declared[field.name] = field
        text = help_text(field).replace("%", "%%")
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
        """As in argparse, but reports misspelled options before missing arguments, and checks values."""
        args = joined_pairs(sys.argv[1:] if args is None else [str(word) for word in args])
        known = [*self._option_string_actions, *self.known_elsewhere]
        for word in takewhile(lambda word: word != "--", args):
            name = word.partition("=")[0]
            if name in self.renamed and name not in known:
                self.error(f"no option {name}: it is {self.renamed[name]} now.")
            if name.startswith("--") and name not in known:
                spelled_alike = [other for other in known if "_" in name or "_" not in other]
                close = difflib.get_close_matches(name, spelled_alike, n=1)
                self.error(
                    f"no option {name}" + (f", did you mean {close[0]}?" if close else "; see --help.")
                )
        values, others = super().parse_known_args(args, namespace)
        try:
            for name in vars(values).keys() & self.declared.keys():
                check_not_empty(name, getattr(values, name))
                check_option(self.declared[name], self.declared[name].type, getattr(values, name))
        except ValueError as error:
            self.error(str(error))
        return values, others


def joined_pairs(words: Sequence[str]) -> list[str]:
    """Joins an option of `PAIRS` and its two numbers to one word: --value-range 0 4095 -> --value-range=0,4095."""
    words, joined = list(words), []
    while words:
        word = words.pop(0)
        if word in PAIRS and words:
            values = [words.pop(0)]
            if number(values[0]) is not None and words and number(words[0]) is not None:
                values.append(words.pop(0))
            word = f"{word}={','.join(values)}"
        joined.append(word)
    return joined


class OptionsFormatter(argparse.HelpFormatter):
    """Shows one spelling of each option, and `--no-NAME` only for switches that are on by default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(120, shutil.get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy(action)
        shown.option_strings = getattr(action, "shown", action.option_strings)
        return super()._format_action_invocation(shown)


def help_text(field: dataclasses.Field) -> str:
    """Returns the help text with its notes, such as "number of images (default: 4; from 1 to 64)".

    Without the default if the option is off by default, or the text names it at its end.
    """
    text, named, default = field.metadata["help"].partition(" (default: ")
    is_off = any(field.default is nothing for nothing in (dataclasses.MISSING, None, "", False))
    if named:
        default = default.removesuffix(")")
    elif not is_off:
        default = "yes" if field.default is True else str(field.default)
    notes = [f"default: {default}"] if default else []
    if bounds := bounds_to_show(RANGES.get(field.name, Range())):
        notes.append(bounds)
    return f"{text} ({'; '.join(notes)})" if notes else text


def bounds_to_show(allowed: Range) -> str:
    """Returns bounds in words, without those that go without saying: at least 0 or 1, and large upper ones."""
    is_large = allowed.maximum is not None and allowed.maximum >= LARGE
    words = (replace(allowed, maximum=None) if is_large else allowed).bounds()
    return "" if words in ("at least 0", "at least 1") else words


@contextmanager
def short_errors(program: str, with_traceback: bool = False) -> Iterator[None]:
    """Context manager that ends the program with a message, without traceback, for errors of the user.

    Args:
        program: Name of the command, printed before the message.
        with_traceback: Let errors through unchanged.
    """
    hide_other_bars()
    try:
        yield
    except BaseException as error:
        # Variables in the frames keep data loader processes alive, and Python waits for those at exit.
        traceback.clear_frames(error.__traceback__)
        if with_traceback or not is_expected(error):
            raise
        raise SystemExit(f"{program}: {printable(plain_message(error))}") from error


def is_expected(error: BaseException) -> bool:
    """Whether a user can cause the error, so that its message suffices."""
    return (
        isinstance(error, ValueError | OSError | CommandError)
        or is_missing_extra(error)
        or is_wrong_setting(error)
        or is_death_of_a_worker(error)
        or is_failed_write(error)
    )


def is_missing_extra(error: BaseException) -> bool:
    """Whether a package of an optional extra is missing; the message then names the extra."""
    return isinstance(error, ImportError) and "pip install" in str(error)


def is_wrong_setting(error: BaseException) -> bool:
    """Whether a check of a configuration failed; transformers wraps what these checks raise."""
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, StrictDataclassError)


def is_death_of_a_worker(error: BaseException) -> bool:
    """Whether a data loader process died: by torch's message, or by the broken connection to it."""
    if isinstance(error, OSError | EOFError):
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return any(place.endswith("resource_sharer.py") for place in places)
    return isinstance(error, RuntimeError) and WORKER_DIED.search(str(error)) is not None


def is_failed_write(error: BaseException) -> bool:
    """Whether safetensors could not write a file, as on a full disk; its error is not an OSError."""
    return type(error).__name__ == "SafetensorError" and "I/O error" in str(error)


def plain_message(error: BaseException) -> str:
    """Returns the message, without the traceback that a data loader process puts before its own."""
    text = str(error.__cause__ if is_wrong_setting(error) else error)
    if "Original Traceback (most recent call last)" in text:
        text = re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    if is_death_of_a_worker(error):
        return (
            f"a data loader process died ({text or 'its connection ended'}), most often because memory or /dev/shm is full. "
            "Use fewer --workers (0 starts no process), or give the container more shared memory (docker run --shm-size). "
            "Training continues with --resume."
        )
    if isinstance(error, PermissionError) and error.filename:
        return f"permission denied for '{error.filename}'. Change its permissions, or give another path."
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or is_failed_write(error):
        text += ". Free some space, then run the command again; training continues with --resume, prediction with --skip-existing."
    return text
