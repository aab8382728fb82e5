"""Optional packages: each belongs to an extra, and where one is missing the error names the extra to install."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import tiny_glam_swin

import contextseg
from contextseg.app import server
from contextseg.app.options import AppArguments

ROOT = Path(contextseg.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml"}  # names of imports and of what one installs
COMPARED = {"albumentations", "cv2", "monai", "segmentation-models-pytorch"}  # with ours, by benchmarks only


def names(requirements):
    """The names of requirements, without versions and extras."""
    return {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def imported_packages():
    """What the package imports besides itself and the standard library."""
    found = set()
    for folder in (name.partition(".")[2] for name in tool_packages()):
        for path in (ROOT / folder.replace(".", "/")).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"contextseg"}


def tool_packages():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def import_without(monkeypatch, package, *modules):
    """Imports the last of these modules as if none of them was loaded and the package was not installed."""
    for name, module in [(name, importlib.import_module(name)) for name in modules]:
        parent, _, stem = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], stem, module)  # the test's end brings it back
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    return importlib.import_module(modules[-1])


def test_every_imported_package_is_required_or_belongs_to_an_extra():
    imported = {PACKAGES.get(name, name).lower().replace("_", "-") for name in imported_packages()}
    required = names(PROJECT["dependencies"])
    extras = ("app", "detection", "geo", "lora", "onnx", "tiff", "volumes")
    optional = names(sum((EXTRAS[extra] for extra in extras), []))
    assert imported - required - COMPARED == optional


def test_all_brings_every_extra_and_dev_brings_all():
    (everything,) = EXTRAS["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == EXTRAS.keys() - {"all", "dev"}
    assert "contextseg[all]" in EXTRAS["dev"]


def test_without_pycocotools_detection_names_its_extra(monkeypatch):
    modules = ("processing.coco_masks", "processing.data.coco", "training.detection")
    with pytest.raises(ImportError, match=r"pip install 'contextseg\[detection\]'"):
        import_without(monkeypatch, "pycocotools", *(f"contextseg.{name}" for name in modules))


def test_without_peft_lora_names_its_extra(monkeypatch):
    lora = import_without(monkeypatch, "peft", "contextseg.modeling.lora")
    with pytest.raises(ImportError, match=r"pip install 'contextseg\[lora\]'"):
        lora.add_lora(tiny_glam_swin())


def test_without_gradio_the_page_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(server, "prepare_gradio", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'contextseg\[app\]'"):
        server.serve(AppArguments(models=["runs/streets"]))
