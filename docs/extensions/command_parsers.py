"""The parser of every command: for the reference pages, and for the test of all examples."""

import argparse
import tomllib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from contextseg.training.command_line import CommandLine

ROOT = Path(__file__).resolve().parents[2]


def commands() -> dict[str, str]:
    """The installed commands and where their `main` is, `{"contextseg-train": "contextseg.scripts.train:main", ...}`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["scripts"]


def parser_of(command: str) -> CommandLine:
    """The parser of a command."""
    return import_module(commands()[command].partition(":")[0]).new_parser()


def parse(command: str, words: Sequence[str]) -> argparse.Namespace:
    """The values that a command reads from `words`. Unknown options and wrong values end in SystemExit, as they do for a user."""
    parser = parser_of(command)
    values, others = parser.parse_known_args(words)
    if others and not parser.known_elsewhere:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return values
