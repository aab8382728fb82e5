"""Repositories of every public segmenter: what they hold, that they work where contextseg was never installed, and their cards."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each
from tiny import SEGMENTERS, pixels_for
from transformers import AutoModelForSemanticSegmentation

from contextseg import SegmentationImageProcessor, VolumeImageProcessor

ROOT = Path(__file__).resolve().parents[2]
OF_VOLUMES = {
    "nnformer": "NnFormerConfig has no option 'decoder'",
    "glam_nnformer": "NnFormerConfig has no option 'decoder'",
    "glam_swin_volumes": "are those of volumes",
}
PROCESSORS = {2: SegmentationImageProcessor, 3: VolumeImageProcessor}
pytestmark = pytest.mark.processes

STRANGER = """
import sys
sys.modules["contextseg"] = None  # as if it had never been installed
import json
from pathlib import Path
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
def answer(attempt):
    try:
        return f"no error, {attempt()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
for folder in map(Path, sys.argv[1:]):
    before = set(sys.modules)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    pixels = torch.from_numpy(np.load(folder / "pixels.npy"))
    with torch.no_grad():
        np.save(folder / "logits.npy", model(pixels).logits.numpy())
    new = [name for name in set(sys.modules) - before if name.startswith("transformers_modules.")]
    files = {Path(sys.modules[name].__file__ or "__init__").stem for name in new}
    model.train()(pixels, labels=torch.zeros_like(pixels[:, 0], dtype=torch.int64)).loss.backward()
    other = "unet" if model.config.decoder != "unet" else "upernet"
    report = {
        "imported": sorted(files - {"__init__"}),
        "trained": all(weight.grad is not None for weight in model.parameters()),
        "other decoder": answer(lambda: type(model).from_pretrained(folder, decoder=other)),
        "other checkpoint": answer(lambda: type(model).from_swin(folder)),
    }
    (folder / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Folder of each segmenter with its image processor, and what STRANGER says of it."""
    root = tmp_path_factory.mktemp("repositories")
    for name, build in SEGMENTERS.items():
        model = build()
        model.save_pretrained(root / name)
        processor = PROCESSORS[getattr(model.config, "num_axes", 2)]
        processor().save_pretrained(root / name)
        np.save(root / name / "pixels.npy", pixels_for(model, 1, 3, 37, 53).numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))
        folders = [str(root / name) for name in SEGMENTERS]
        subprocess.run([sys.executable, "-I", "-c", STRANGER, *folders], check=True, cwd=root)
    return {name: root / name for name in SEGMENTERS}


@pytest.fixture(scope="module")
def reports(repositories):
    return {name: json.loads((folder / "report.json").read_text()) for name, folder in repositories.items()}


def code_of(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))


def test_every_segmenter_opens_without_the_package_with_the_same_logits(repositories):
    different = []
    for name, folder in repositories.items():
        model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
        with torch.no_grad():
            expected = model(torch.from_numpy(np.load(folder / "pixels.npy"))).logits.numpy()
        if not np.allclose(np.load(folder / "logits.npy"), expected, rtol=0, atol=1e-6):
            different.append(name)
    assert different == []


def test_every_segmenter_trains_without_the_package(reports):
    assert [name for name, report in reports.items() if not report["trained"]] == []


def test_a_repository_holds_three_source_files_and_all_of_them_are_imported(repositories, reports):
    for name, folder in repositories.items():
        files = sorted(path.stem for path in folder.glob("*.py"))
        assert [file.partition("_")[0] for file in files] == ["configuration", "image", "modeling"]
        assert reports[name]["imported"] == files


def test_what_the_model_does_not_use_stays_at_home(repositories):
    """Other decoders, upsamplings and necks, weights from elsewhere, heads of other tasks, tiling."""
    held = {
        name: set(re.findall(r"^class (\w+)", code_of(folder), re.MULTILINE))
        for name, folder in repositories.items()
    }
    decoders = {
        *("PyramidUnetDecoder", "SegDeformerDecoder", "SemanticFpnDecoder", "UnetDecoder", "UperNetDecoder"),
        *("CoarsestMap", "NnFormerDecoder", "ProgressiveDecoder"),
    }
    assert {name: sorted(classes & decoders) for name, classes in held.items()} == {
        "glam_swin": ["UperNetDecoder"],
        "glam_swin_fpn": ["SemanticFpnDecoder"],
        "glam_swin_unet": ["UnetDecoder"],
        "glam_swinv2": ["SemanticFpnDecoder"],
        "maformer": ["SemanticFpnDecoder"],
        "maformer_unet": ["UnetDecoder"],
        "cswin": ["UperNetDecoder"],
        "cswin_unet": ["UnetDecoder"],
        "caswit": ["UperNetDecoder"],
        "relay": ["CoarsestMap"],
        "relay_swinv2": ["UperNetDecoder"],
        "segdeformer": ["SegDeformerDecoder"],
        "segdeformer_glam": ["SegDeformerDecoder"],
        "segdeformer_unet": ["PyramidUnetDecoder"],
        "nnformer": ["NnFormerDecoder"],
        "glam_nnformer": ["NnFormerDecoder"],
        "glam_swin_volumes": ["UnetDecoder"],
    }
    families = ("Caswit", "Cswin", "GlamSwin", "Maformer", "NnFormer", "Relay")
    backbones = {"MitEncoder", *(f"{family}Backbone" for family in families)}
    for name, classes in held.items():
        assert len(classes & backbones) == 1, name
    assert "LinearFusion" not in held["segdeformer"]
    assert "WindowCrossAttention" not in held["cswin_unet"]
    for name, folder in repositories.items():
        code = code_of(folder)
        assert not re.search(
            r"^def (model_from_swin|model_from_segformer|blended_rows)", code, re.MULTILINE
        ), name
        assert not re.search(r"^class \w*(ImageClassification|ObjectDetection)", code, re.MULTILINE), name


def test_another_decoder_than_the_repositorys_is_answered_with_where_to_find_it(reports):
    for name, report in reports.items():
        if name not in OF_VOLUMES:
            assert re.fullmatch(
                r"ValueError: this repository contains the code of decoder '\w+' only, not of '(unet|upernet)'\. contextseg has "
                r"all of them: install it, and use `import contextseg` instead of trust_remote_code=True\.",
                report["other decoder"],
            ), (name, report["other decoder"])


@each(("name", "reason"), list(OF_VOLUMES.items()))
def test_a_decoder_that_a_model_of_volumes_cannot_have_is_refused(reports, name, reason):
    assert reason in reports[name]["other decoder"]


def test_reading_other_checkpoints_asks_for_the_library(reports):
    answer = reports["glam_swin"]["other checkpoint"]
    assert answer.startswith("ImportError: loading other checkpoints needs the contextseg library")
    assert "pip install contextseg" in answer


def test_exported_code_passes_ruff(repositories):
    """So no name is undefined or imported for nothing."""
    folders = [str(folder) for folder in repositories.values()]
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), *folders]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_definition_is_used(repositories):
    """Counted over the three files together; the settings name the classes that nothing else uses."""
    for name, folder in repositories.items():
        trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
        defined = {node.name for tree in trees for node in tree.body if hasattr(node, "name")}
        used = set(re.findall(r"\w+\.(\w+)", "".join(path.read_text() for path in folder.glob("*.json"))))
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # a quoted annotation
                used.add(node.value)
        assert defined - used <= {"global_attention_maps"}, name  # for the page of a Space, and users


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("glam_swin", "at 1/4 of the image's height and width"),
        ("glam_swin_unet", "at full resolution from patches of 4 x 4 pixels"),
        ("segdeformer", "at the resolution of the encoder's finest feature map"),
        ("maformer", "published neither code nor weights"),
    ],
)
def test_a_card_names_the_limits_of_its_model(repositories, name, said):
    assert said in (repositories[name] / "README.md").read_text()
