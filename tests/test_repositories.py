"""Repositories of every public segmenter: they open where contextseg was never installed, and their cards tell their limits."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import SEGMENTERS
from transformers import AutoModelForSemanticSegmentation

STRANGER = """
import sys
sys.modules["contextseg"] = None  # as if it had never been installed
from pathlib import Path
import numpy as np, torch
from transformers import AutoModelForSemanticSegmentation
for folder in map(Path, sys.argv[1:]):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        np.save(folder / "logits.npy", model(torch.from_numpy(np.load(folder / "pixels.npy"))).logits.numpy())
"""


@pytest.mark.processes
def test_every_segmenter_opens_without_the_package_with_the_same_logits(tmp_path, monkeypatch):
    pixels = torch.randn(1, 3, 37, 53)
    expected = {}
    for name, build in SEGMENTERS.items():
        build().save_pretrained(tmp_path / name)
        np.save(tmp_path / name / "pixels.npy", pixels.numpy())
        model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            expected[name] = model(pixels).logits.numpy()
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folders = [str(tmp_path / name) for name in SEGMENTERS]
    subprocess.run([sys.executable, "-I", "-c", STRANGER, *folders], check=True, cwd=tmp_path)
    different = [
        name for name, logits in expected.items()
        if not np.allclose(np.load(tmp_path / name / "logits.npy"), logits, rtol=0, atol=1e-6)
    ]  # fmt: skip
    assert different == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("glam_swin", "at 1/4 of the image's side"),
        ("glam_swin_unet", "at the image's size, from patches of 4 pixels"),
        ("segdeformer", "at the size of the encoder's finest feature map"),
        ("maformer", "published neither code nor weights"),
    ],
)
def test_a_card_names_the_limits_of_its_model(name, said, tmp_path):
    SEGMENTERS[name]().save_pretrained(tmp_path)
    assert said in (tmp_path / "README.md").read_text()
