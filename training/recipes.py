"""Recipes: the options of a run in a YAML file, `OPTION: VALUE` as on the command line.

    task: classification
    learning-rate: 1.6e-3
    set: [drop_path_rate=0.1]      # a repeatable option takes a list
    augmentation: false            # --no-augmentation
    paper: {top-1: 83.7, images: 1281167, classes: 1000, source: Table 1}

Instead, a recipe may be the `run.json` of an earlier run, whose options start the same run again.

`paper` describes the published result that the run reproduces. It is printed and sets no option; a dry run
without --train takes the size of the data from its `images` and `classes`.
"""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..configuration.checked_config import did_you_mean
from ..processing.plain_text import printable
from .options import train_parser

LARGEST_FILE = 1 << 20  # bytes
FOLDER = Path(__file__).parents[1] / "scripts" / "recipes"
SUFFIXES = (".yaml", ".yml", ".json")
RECORD = "run.json"
# Options of a run that one that repeats it must not take over.
OF_ONE_RUN = {"task", "output", "resume", "push", "recipe", "dry_run", "traceback"}
NOT_IN_RECIPES = {"recipe", "config", "help"}
STARTING_POINTS = {"preset", "init_from"}  # each determines the model's size


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe file; `str(recipe)` is the summary that a run prints."""

    path: Path
    options: dict[str, Any]
    paper: dict[str, Any]

    def __str__(self) -> str:
        name = self.path if self.path.suffix == ".json" else self.path.stem
        lines = [f"recipe {name}: {shlex.join(self.command_line())}"]
        lines += [f"  paper: {name}: {value}" for name, value in self.paper.items()]
        return "\n".join(map(printable, lines))

    def command_line(self) -> list[str]:
        """Returns the options as words of a command line."""
        words = []
        for name, value in self.options.items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                values = value if isinstance(value, list) else [value]
                words += [word for single in values for word in (f"--{name}", str(single))]
        return words


def with_recipe(given: dict[str, Any]) -> tuple[dict[str, Any], Recipe | None]:
    """Merges given options with those of the recipe that they name.

    Given options override those of the recipe; values of repeatable options are appended. A given starting
    point, such as --init-from, replaces that of the recipe, such as its preset.

    Args:
        given: Values of options by name; `recipe` is the name or path of the recipe, if any.

    Returns:
        The merged options, and the recipe or None.

    Raises:
        ValueError: If there is no such recipe, or it cannot be read.
    """
    if not given.get("recipe"):
        return given, None
    recipe = read_recipe(given["recipe"])
    options = train_parser(f"recipe {recipe.path}").given(recipe.command_line())
    for name, value in recipe.options.items():
        if isinstance(value, list) and not isinstance(options.get(name.replace("-", "_")), list):
            raise ValueError(
                f"'{name}' in the recipe {recipe.path} takes a single value, but has {len(value)}."
            )
    if any(given.get(name) for name in STARTING_POINTS):
        options = {name: value for name, value in options.items() if name not in STARTING_POINTS}
    joined = {
        name: options[name] + value
        for name, value in given.items()
        if isinstance(value, list) and name in options
    }
    return {**options, **given, **joined}, recipe


def read_recipe(name: str) -> Recipe:
    """Reads a recipe, given by path or by the name of a built-in one.

    Raises ValueError if it does not exist or is malformed.
    """
    path = find_recipe(name)
    if path.suffix == ".json":
        return Recipe(path, recorded_options(path), {})
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} has no options. Write lines such as 'learning-rate: 1e-4'.")
    paper = content.pop("paper", None) or {}
    if not isinstance(paper, dict):
        raise ValueError(f"'paper' in the recipe {path} is not a mapping. Indent its 'name: value' lines.")
    spellings: dict[str, str] = {}
    for option, value in content.items():
        if not isinstance(option, str) or option in NOT_IN_RECIPES:
            raise ValueError(f"{option!r} in the recipe {path} is not an option that a recipe can set.")
        name = option.replace("_", "-").removeprefix("no-")
        if spellings.setdefault(name, option) != option:
            raise ValueError(f"the recipe {path} has '{spellings[name]}' and '{option}'. Remove one of them.")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(single, str | int | float) for single in values):
            raise ValueError(
                f"'{option}' in the recipe {path} is neither a value nor a list. Write '{option}: VALUE', or a list of values."
            )
    return Recipe(path, content, paper)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file without aliases and repeated keys. Raises ValueError, with its path, if it is malformed."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(
            f"the recipe {path} has {path.stat().st_size} bytes; a recipe has a few lines of options."
        )
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the recipe {path} is not valid YAML: {reason:.300}") from error


class PlainLoader(yaml.SafeLoader):
    """Refuses aliases, with which a few lines can describe a billion values, and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML, but raises for an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"it has the alias '*{event.anchor}'. Write the values out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in PyYAML, but raises for a repeated key."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"it has '{key}' twice. Remove one of them", node.start_mark
                )
        return super().construct_mapping(node, deep)


def recorded_options(path: Path) -> dict[str, Any]:
    """Returns the options of the `run.json` of `contextseg-train`, without those of that one run.

    Raises ValueError if it is not such a record.
    """
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))["arguments"]
        task = arguments["task"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not the run.json of a run of contextseg-train. Give one, a YAML file, or the name of a recipe."
        ) from error
    kept = {
        name: value
        for name, value in arguments.items()
        if name not in OF_ONE_RUN and value not in (None, [], "")
    }
    return {"task": task} | {name.replace("_", "-"): value for name, value in kept.items()}


def find_recipe(name: str) -> Path:
    """Returns the path of a recipe; of a folder of a run, that of its record.

    Raises ValueError if it does not exist.
    """
    looks_like_a_path = name.endswith(SUFFIXES) or os.sep in name
    path = Path(name).expanduser() if looks_like_a_path else FOLDER / f"{name}.yaml"
    if path.is_dir():
        path = path / RECORD
    if path.is_file():
        return path
    if looks_like_a_path:
        raise ValueError(f"there is no recipe {path} (relative to {Path.cwd()}). Check the path.")
    raise ValueError(f"there is no recipe '{name}'{did_you_mean(name, recipe_names())}")


def recipe_names() -> list[str]:
    """Returns the names of the built-in recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
