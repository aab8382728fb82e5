"""The parser of every command, as the command itself builds it: for the reference pages, and for the test of all examples.

Nothing here knows how the commands are written. A command's `main` is called, and the moment at which argparse parses is
caught, so the documentation cannot differ from what the command accepts.
"""

import argparse
import tomllib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


class Parsed(BaseException):
    """Ends a command as soon as its arguments are read."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace | None) -> None:
        self.parser, self.arguments = parser, arguments


def commands() -> dict[str, str]:
    """The installed commands and where their `main` is, `{"contextseg-train": "contextseg.scripts.train:main", ...}`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["scripts"]


def main_of(command: str) -> Callable[[Sequence[str]], Any]:
    """The function that a command, or `python -m` with its module, calls."""
    module, _, function = commands()[command].partition(":")
    return getattr(import_module(module), function)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    return parsed(command, None).parser


def parse(command: str, words: Sequence[str]) -> argparse.Namespace:
    """The values that a command reads from `words`. Unknown options and wrong values end in SystemExit, as they do for a user."""
    return parsed(command, words).arguments


def parsed(command: str, words: Sequence[str] | None) -> Parsed:
    """What a command's `main` had when it parsed `words`, or, for None, before it parsed anything."""
    with stopped_when_parsed(only_parser=words is None):
        try:
            main_of(command)(list(words or []))
        except Parsed as end:
            return end
    raise RuntimeError(f"{command} ran without parsing its arguments")


@contextmanager
def stopped_when_parsed(*, only_parser: bool) -> Any:
    original = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
        if only_parser:
            raise Parsed(parser, None)
        namespace, unknown = original(parser, *arguments, **options)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise Parsed(parser, namespace)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse_known_args):
        yield
