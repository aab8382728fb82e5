"""What all commands have in common: one parser, quick answers, one meaning for each name, no option without an effect."""

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest
from cases import each

from contextseg.benchmarks.context_networks import Task
from contextseg.training.command_line import CommandLine, CommandOptions, option, positional, required
from contextseg.training.option_texts import factors, integers, parse_position
from contextseg.training.option_values import PARSERS, RANGES
from contextseg.training.options import (
    ARGUMENTS,
    train_arguments,
    train_parser,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = {name: place.partition(":")[0] for name, place in SCRIPTS.items()}
STUDIED = ["app", "training", "processing", "scripts", "benchmarks"]
TASK_FILES = {f"training/{task}.py": task for task in ARGUMENTS}
BASES = {"masked_pretraining": "segmentation"}  # tasks that take their crops from another

# Every command is asked for its help, and given an option that no command has.
QUICK = """
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
for module in sys.argv[1:]:
    for argv in (["--help"], ["--tracebakc"]):
        said = StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                import_module(module).main(argv)
        except SystemExit:
            assert ("show this help" if argv == ["--help"] else "did you mean --traceback?") in said.getvalue(), said.getvalue()
    heavy = {"torch", "torchvision", "timm", "accelerate", "datasets", "matplotlib", "scipy"} & sys.modules.keys()
    assert not heavy, (module, heavy)
"""


@pytest.mark.processes
def test_help_and_a_misspelled_option_are_answered_without_importing_anything_heavy():
    finished = subprocess.run(
        [sys.executable, "-c", QUICK, *MODULES.values()], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr


@dataclass
class Arguments(CommandOptions):
    place: str = positional("where")
    files: list[str] = positional("what")
    speed: float = required("how fast")
    kind: Literal["a", "b"] | None = option(None, "which")
    max_count: int = option(3, "how many, in % of all")
    names: list[str] = option([], "what they are called")
    limit: int = option(5, "at most these (default: 5; with --json, 9)")
    use_flip: bool = option(True, "mirror it")
    json: bool = option(False, "print JSON")


def parser():
    return CommandLine(Arguments, "command", "It commands.")


GIVEN = {
    "values": (["--kind", "b", "--max-count", "4"], {"kind": "b", "max_count": 4}),
    "underscores": (["--max_count=4", "--no-use_flip"], {"max_count": 4, "use_flip": False}),
    "repeated": (["--names", "a", "--names", "b"], {"names": ["a", "b"]}),
    "in a row": (["--names", "a", "b"], {"names": ["a", "b"]}),
    "switched off": (["--no-use-flip"], {"use_flip": False}),
    "switched back on": (["--no-use-flip", "--use-flip", "--json"], {"use_flip": True, "json": True}),
}


@pytest.mark.parametrize(("words", "expected"), GIVEN.values(), ids=GIVEN)
def test_only_given_options_are_returned_and_the_dataclass_fills_in_the_rest(words, expected):
    always = {"place": "here", "files": ["x", "y"], "speed": 2.0}
    words = ["here", "x", "y", "--speed", "2", *words]
    assert parser().given(words) == {**always, **expected}
    assert parser().arguments(words) == Arguments(**always, **expected)


FAULTS = {
    "misspelled": (["--max-cuont", "4"], "no option --max-cuont, did you mean --max-count?"),
    "misspelled with underscores": (["--max_cuont=4"], "no option --max_cuont, did you mean --max_count?"),
    "unlike anything": (["--qqqqqq"], "no option --qqqqqq; see --help."),
    "missing": (["here", "x"], "the following arguments are required: "),
    "no choice": (["here", "x", "--speed", "1", "--kind", "c"], "argument --kind: invalid choice: 'c'"),
    "abbreviated": (["here", "x", "--speed", "1", "--max", "4"], "no option --max, did you mean"),
}


@pytest.mark.parametrize(("words", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_command_line_is_answered_in_a_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.replace("--kind, --kind", "--kind")


def test_help_shows_one_spelling_the_default_and_what_can_be_switched_off():
    text = " ".join(parser().format_help().split())
    assert "usage: command PLACE FILES --speed X [options]" in text
    assert "--max-count N how many, in % of all (default: 3)" in text
    assert "--use-flip, --no-use-flip mirror it (default: yes)" in text
    assert "--json print JSON" in text
    assert "--limit N at most these (default: 5; with --json, 9) --use-flip" in text
    assert "max_count" not in text


def test_every_option_of_every_command_has_a_help_text():
    for module in MODULES.values():
        actions = import_module(module).new_parser()._actions
        assert [action.dest for action in actions if not action.help] == []


def command_dataclasses():
    """(command, dataclass) of every command; contextseg-train has three."""
    for command, module in MODULES.items():
        for kind in import_module(module).new_parser().dataclass_types:
            yield command, kind


def test_a_name_has_one_type_in_all_commands():
    types = {}
    for command, kind in command_dataclasses():
        hints = get_type_hints(kind)
        for field in fields(kind):
            plain = str(hints[field.name]).replace(" | None", "").replace("<class '", "").replace("'>", "")
            types.setdefault(field.name, {}).setdefault(plain, set()).add(command)
    del types["task"]  # the choices of a command are the tasks that it knows
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


def reads(path):
    """The names that a file reads of `arguments`, `options` or, where options are declared, of `self`; and by `given.get`."""
    owners = {"arguments", "options", *["self"] * path.name.endswith("options.py")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            if (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")) in owners:
                yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "given.get":
            yield ast.unparse(node.args[0]).strip("'")


BY_NAME = {  # read by getattr with a name from a table
    "contextseg-predict": {"confidence", "entropy", "probabilities"},
    "contextseg-context": set(Task.__dataclass_fields__),
}


def test_every_option_of_every_command_is_read():
    files = [path for folder in STUDIED for path in (ROOT / folder).rglob("*.py")]
    everywhere = {name for path in files for name in reads(path)}
    for command, kind in command_dataclasses():
        own = {field.name for field in fields(kind)}
        assert own - everywhere - BY_NAME.get(command, set()) - {"task"} == set(), command


@pytest.mark.parametrize("task", ARGUMENTS)
def test_every_option_of_a_task_is_read_in_its_runs(task):
    files = [
        path
        for path in (ROOT / "training").glob("*.py")
        if TASK_FILES.get(f"training/{path.name}", task) in (task, BASES.get(task))
        and not path.name.startswith("finetuning")
    ]
    found = {name for path in [*files, ROOT / "scripts" / "train.py"] for name in reads(path)}
    assert {field.name for field in fields(ARGUMENTS[task])} - found == set()


OTHERS = {
    "segmentation": (
        ["--min-area", "0.2"],
        "--min-area is an option of classification, but the task of this run is segmentation",
    ),
    "classification": (
        ["--task", "classification", "--window", "64"],
        "--window is an option of segmentation",
    ),
    "detection": (
        ["--task", "detection", "--crop-size", "64"],
        "--crop-size is an option of segmentation, classification and masked_pretraining",
    ),
}


@pytest.mark.parametrize(("words", "message"), OTHERS.values(), ids=OTHERS)
def test_an_option_of_another_task_is_refused(words, message):
    with pytest.raises(ValueError, match=f"{message}.*Leave it out, or choose --task"):
        train_arguments(train_parser().given(words))


def test_every_option_that_is_a_number_has_a_range_and_no_range_lacks_an_option():
    numbers, texts = set(), set()
    for _, kind in command_dataclasses():
        hints = get_type_hints(kind)
        for field in fields(kind):
            texts.add(field.name)
            if {int, float} & {hints[field.name], *get_args(hints[field.name])}:
                numbers.add(field.name)
    assert numbers == set(RANGES)
    assert set(PARSERS) <= texts


OUTSIDE = {
    "zero is not 'not given'": ("--epochs", "0"),
    "zero steps": ("--steps", "0"),
    "negative": ("--warmup-steps", "-1"),
    "not a number": ("--weight-decay", "nan"),
    "infinite": ("--clip-norm", "inf"),
    "too large for a float": ("--learning-rate", "1e400"),
    "above": ("--ema", "1"),
    "a factor": ("--lr-factor", "backbone=nan"),
    "a factor of nothing": ("--lr-factor", "=1"),
    "a side": ("--crop-size", "0x32"),
    "a superscript": ("--window", "²"),
    "a huge side": ("--base-size", "64x999999999999"),
    "a range of sides": ("--shorter-side", "1-9999999"),
    "an epoch": ("--milestones", "inf"),
    "scaled to nothing": ("--min-scale", "5e-324"),
    "an order that fills the memory": ("--crops-per-image", "1000000000"),
    "an empty size": ("--window", ""),
    "an empty text": ("--val", ""),
    "an empty module": ("--freeze", " "),
}


@each(("name", "value"), OUTSIDE)
def test_a_number_that_makes_no_sense_is_refused_with_the_name_of_its_option(name, value, capsys):
    with pytest.raises(SystemExit):
        train_parser().given([name, value])
    assert re.search(f"error: .*{name}.* (is|are|not) ", capsys.readouterr().err)


WRONG = {
    "text for a number": {"steps": "3"},
    "a switch for a number": {"steps": True},
    "a fraction": {"batch_size": 1.5},
    "out of range": {"ema": 2},
    "not a number": {"max_scale": float("nan")},
    "a factor": {"lr_factor": ["backbone=-1"]},
    "text for a list": {"lr_factor": "backbone=1"},
    "text for a switch": {"augmentation": "no"},
    "no choice": {"schedule": "linear"},
    "a number for text": {"train": 3},
    "in the wrong order": {"min_scale": 3.0},
    "more than the peak": {"min_learning_rate": 1.0, "learning_rate": 0.1},
    "both": {"steps": 3, "epochs": 2},
    "empty": {"base_size": ""},
    "empty in a list": {"freeze": ["backbone", ""]},
}


@each("given", WRONG)
def test_values_from_python_and_from_a_stored_run_are_checked_too(given):
    with pytest.raises(ValueError, match=f"--{next(iter(given)).replace('_', '-')}"):
        train_arguments(given)


FAULTY_TEXTS = {
    "--scales 0.5,nan": (factors, "0.5,nan"),
    "--scales 1,": (factors, "1,"),
    "--sizes 0": (integers, "64,0"),
    "--explain 3": (parse_position, "3"),
    "--explain -1,2": (parse_position, "-1,2"),
}


@each(("parse", "text"), FAULTY_TEXTS)
def test_numbers_in_a_text_are_checked_one_by_one(parse, text):
    with pytest.raises(ValueError, match="--option .*(must be|is not|Give)"):
        parse(text, "--option")
