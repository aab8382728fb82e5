"""The README's Python runs as it stands, and its command lines name options that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from cases import each
from PIL import Image
from tiny_runs import write_data

from contextseg import GlamSwinConfig, GlamSwinForSemanticSegmentation, SegmentationImageProcessor
from contextseg.scripts.evaluate import EvaluateArguments
from contextseg.scripts.train import TrainArguments
from contextseg.scripts.training.arguments import given_options

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
HUB = r"## Push to the Hub\n.*?(?=\n## )"  # test_hub_journey.py runs it
WITHOUT_HUB = re.sub(HUB, "", README, flags=re.DOTALL)
SCRIPTS = {
    "contextseg-check": "check",
    "contextseg-convert": "convert_weights",
    "contextseg-evaluate": "evaluate",
    "contextseg-export": "export_hub",
    "contextseg-finetune": "finetune",
    "contextseg-predict": "predict",
    "contextseg-train": "train",
}


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = GlamSwinConfig.preset("nano", id2label={0: "road", 1: "car"})
    GlamSwinForSemanticSegmentation(config).save_pretrained("runs/streets/best")
    SegmentationImageProcessor().save_pretrained("runs/streets/best")
    Image.new("RGB", (64, 48), "grey").save("photo.jpg")
    write_data(tmp_path / "data")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", WITHOUT_HUB, flags=re.DOTALL):
        exec(block, names)
    assert names["mask"].shape == (48, 64)


def test_the_five_lines_at_the_top_are_five():
    first = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    assert len([line for line in first.splitlines() if line]) <= 6


@each("command", sorted(SCRIPTS))
def test_the_options_in_the_readme_exist(command, capsys):
    shown = " ".join(re.findall(rf"{command}(.*)", README))
    options = set(re.findall(r"(--[a-z-]+)", shown))
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"contextseg.scripts.{SCRIPTS[command]}").main(["--help"])
    assert ended.value.code == 0
    assert options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_the_launch_commands_name_configurations_and_options_that_exist():
    commands = re.findall(r"^accelerate launch (.*)$", README, flags=re.MULTILINE)
    assert commands
    for command in commands:
        launch = launch_command_parser().parse_args(shlex.split(command))
        assert ClusterConfig.from_yaml_file(ROOT / launch.config_file).num_machines == 1
        assert launch.module
        kind = {"train": TrainArguments, "evaluate": EvaluateArguments}[launch.training_script.split(".")[-1]]
        given_options(kind, launch.training_script_args, "contextseg", "")


def test_links_of_the_readme_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    headings = {
        "#" + title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", README, re.MULTILINE)
    }
    assert [target for target in targets if target not in headings and not (ROOT / target).exists()] == []
