"""Command lines from dataclasses: the comment behind a field is its help.

    @dataclass
    class Arguments:
        images: list[str]  # a field without a default is a positional argument
        # Masks
        output: str = "masks"  # a comment alone on its line opens a group of the help text

Only the standard library is imported here, so that `--help` and a misspelt option answer at once.
"""

import argparse
import dataclasses
import difflib
import errno
import inspect
import re
import shutil
import traceback
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

FIELD = re.compile(r"^    (\w+):.*?  # (.+)$")
METAVAR = re.compile(r"^([A-Z][A-Z,=]*): (.+)$")
GROUP = re.compile(r"^    # (.+)$")
WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited)")


class CommandError(RuntimeError):
    """Something went wrong while a command ran, and its message says what to do."""


class CommandLine(argparse.ArgumentParser):
    """A parser that proposes the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            message = f"no option {unknown[1]}" + (
                f", did you mean {close[0]}?" if close else "; see --help."
            )
        super().error(message)


def given_options(cls: type, argv: list[str] | None, program: str, description: str) -> dict[str, Any]:
    """The options named in `argv` (or on the command line), without the defaults of the others."""
    return vars(command_line(cls, program, description).parse_args(argv))


def parse(cls: type, argv: list[str] | None, program: str, description: str) -> Any:
    """An instance of the dataclass `cls`, filled from `argv` (or the command line)."""
    return cls(**given_options(cls, argv, program, description))


def command_line(cls: type, program: str, description: str) -> CommandLine:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    positional = [field.name.upper() for field in fields.values() if not has_default(field)]
    width = min(120, shutil.get_terminal_size().columns)
    parser = CommandLine(
        prog=program,
        usage=" ".join(["%(prog)s", *positional, "[options]"]),
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=width),
    )
    target, hints = parser, typing.get_type_hints(cls)
    for line in inspect.getsource(cls).splitlines():
        if group := GROUP.match(line):
            target = parser.add_argument_group(group[1])
        elif match := FIELD.match(line):
            add_field(target, fields.pop(match[1]), hints[match[1]], match[2])
    if fields:
        raise TypeError(f"{cls.__name__}.{next(iter(fields))} has no comment on its line to be its help.")
    return parser


def add_field(target: argparse._ActionsContainer, field: dataclasses.Field, hint: Any, text: str) -> None:
    """One field as one argument; its type decides how it is written, and a text such as "X,Y: where" names its value."""
    metavar, text = METAVAR.match(text).groups() if METAVAR.match(text) else (field.name.upper(), text)
    options: dict[str, Any] = {"help": text.replace("%", "%%") + default_text(field)}
    kind = plain_type(hint)
    name = "--" + field.name.replace("_", "-")
    if not has_default(field):
        options["nargs"] = "+" if typing.get_origin(kind) is list else None
        target.add_argument(field.name, metavar=metavar, **options)
    elif kind is bool:
        name = "--no-" + name[2:] if field.default is True else name
        action = "store_false" if field.default is True else "store_true"
        target.add_argument(name, dest=field.name, action=action, help=text)
    elif typing.get_origin(kind) is typing.Literal:
        target.add_argument(name, choices=typing.get_args(kind), **options)
    elif typing.get_origin(kind) is list:
        target.add_argument(name, action="append", metavar=metavar, **options)
    else:
        metavar = {int: "N", float: "X", str: metavar}[kind]
        target.add_argument(name, type=kind, metavar=metavar, **options)


def plain_type(hint: Any) -> Any:
    """`int | None` -> `int`; every other type stays."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint


def has_default(field: dataclasses.Field) -> bool:
    return dataclasses.MISSING is not field.default or dataclasses.MISSING is not field.default_factory


def default_text(field: dataclasses.Field) -> str:
    is_shown = (
        has_default(field) and field.default is not dataclasses.MISSING and field.default not in (None, "")
    )
    return f" (default: {field.default})" if is_shown else ""


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
