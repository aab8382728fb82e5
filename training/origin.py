"""Origin of a run for `run.json` and the model card: command line, and Hub names of data and checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import timm

from ..modeling.pretrained_backbones import is_timm_name, timm_name
from ..processing.data.datasets import is_path, split_source
from ..processing.data.official_layouts import find_layout
from .options import TaskOptions, TrainArguments, train_arguments
from .recipes import recipe_names, with_recipe


def origin(arguments: TrainArguments, num_processes: int) -> dict[str, Any]:
    """Returns the entries `command` and `hub_names` of a `run.json`."""
    sources = [public_data(source) for source in (arguments.train, arguments.val) if source]
    names = {
        "datasets": list(dict.fromkeys(filter(None, sources))),
        "base_model": public_model(arguments.init_from),
    }
    return {"command": run_command(arguments, num_processes), "hub_names": names}


def run_command(arguments: TrainArguments, num_processes: int = 1) -> list[str]:
    """Returns the words of the command that repeats this run; a built-in recipe is given by name."""
    program = ["contextseg-train"]
    if num_processes > 1:
        program = f"accelerate launch --num_processes {num_processes} -m contextseg.scripts.train".split()
    has_recipe = arguments.recipe in recipe_names()
    options = with_recipe({"recipe": arguments.recipe})[0] if has_recipe else {}
    defaults = train_arguments({**options, "task": arguments.task, "recipe": None})
    task = ["--task", arguments.task] * (arguments.task != options.get("task", TaskOptions.task))
    run = dataclasses.replace(arguments, resume=False, recipe=arguments.recipe if has_recipe else None)
    return [*program, *task, *as_options(run, defaults)]


def as_options(arguments: Any, defaults: Any) -> list[str]:
    """Returns the options in which a dataclass differs from `defaults`, as words of a command line."""
    typed = []
    for field in dataclasses.fields(arguments):
        value, default = getattr(arguments, field.name), getattr(defaults, field.name, None)
        option = "--" + field.name.replace("_", "-")
        if field.metadata.get("positional"):
            typed += value if isinstance(value, list) else [value]
        elif value == default or value is None:
            continue
        elif isinstance(value, bool):
            typed.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, list):
            added = value[len(default) :] if value[: len(default)] == default else value
            typed += [word for single in added for word in (option, single)]
        else:
            typed += [option, str(value)]
    return typed


def public_data(source: str) -> str | None:
    """Returns the Hub name of a dataset, given as for `open_data`; None for an own folder."""
    source, _ = split_source(source, None)
    folder = Path(source).expanduser()
    if layout := find_layout(folder):
        return layout.hub_name
    return None if is_path(source) or folder.exists() else source


def public_model(name: str | None) -> str | None:
    """Returns the Hub name of the checkpoint that a run starts from; None for a folder."""
    if not name or Path(name).expanduser().exists():
        return None
    return timm.get_pretrained_cfg(timm_name(name)).hf_hub_id if is_timm_name(name) else name
