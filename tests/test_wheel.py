"""The wheel, installed where no checkout is: it has all its files, and every command works."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from tiny_runs import run_options, write_data

import contextseg

ROOT = Path(contextseg.__file__).parent
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
NOT_COPIED = shutil.ignore_patterns(".*", "docs", "tests", "runs", "build", "*.egg-info", "__pycache__")

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def run(*command, folder):
    """What a command prints, run in a folder where `import contextseg` finds no checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves its files in the source."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "contextseg", ignore=NOT_COPIED)
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "contextseg", folder=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel, which finds the dependencies in this one but not what is installed from a checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel, folder=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Searched last, and of a path that a .pth file adds no further .pth files are read: no editable installation acts.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [ROOT / name.partition(".")[2].replace(".", "/") for name in tables["packages"]]
    sources = [path for folder in folders for path in folder.glob("*.py")]
    data = [ROOT / "py.typed", ROOT / "__init__.pyi", *(ROOT / "scripts" / "recipes").glob("*.yaml")]
    data += [path for path in (ROOT / "app").glob("*.*") if path.suffix != ".py"]  # of the page
    assert packed == {f"contextseg/{path.relative_to(ROOT).as_posix()}" for path in [*sources, *data]}


def test_every_folder_with_code_is_a_package_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {str(Path(name).parent) for name in archive.namelist() if name.endswith(".py")}
    others = {"tests", "docs", "build", "runs", "demo"}
    folders = {
        path.parent.relative_to(ROOT)
        for path in ROOT.glob("*/**/*.py")
        if path.relative_to(ROOT).parts[0] not in others and "." not in str(path.parent.relative_to(ROOT))
    }
    assert packed == {"contextseg", *(f"contextseg/{folder.as_posix()}" for folder in folders)}


def test_the_commands_answer_and_train_outside_the_checkout(environment, tmp_path):
    python = environment / "bin" / "python"
    place = run(python, "-c", "import contextseg; print(contextseg.__file__)", folder=tmp_path)
    assert Path(place.strip()).is_relative_to(environment)
    for command in COMMANDS:
        assert f"usage: {command}" in run(environment / "bin" / command, "--help", folder=tmp_path)
    options = run_options(write_data(tmp_path / "data"), "trained")
    for name in ("--steps", "--eval-interval"):
        options[options.index(name) + 1] = "10"
    run(environment / "bin" / "contextseg-train", *options, folder=tmp_path)
    image = tmp_path / "data" / "val" / "images" / "scene0.png"
    run(environment / "bin" / "contextseg-predict", "trained", image, "--output", "masks", folder=tmp_path)
    assert list((tmp_path / "masks").rglob("scene0*"))
