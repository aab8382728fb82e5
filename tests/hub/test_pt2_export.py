"""Files of torch.export: results equal the model's at any size, and what cannot be traced leaves no file."""

import json

import pytest
import torch
from tiny import SEGMENTERS, tiny_relay

from contextseg import SegmentationImageProcessor, export_pt2
from contextseg.hub.served_segmenters import ServedIds, ServedLogits
from contextseg.scripts.export import main

# Tracing and loading take up to half a minute.
FAMILIES = "glam_swin", "relay", "segdeformer", "glam_swinv2"
WHOLE_CELLS = ("glam_swinv2",)  # transformers' Swin V2 asks whether sides need padding


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_relay().eval()


def loaded(file, *names):
    facts = dict.fromkeys(names, "")
    with file.open("rb") as opened:
        module = torch.export.load(opened, extra_files=facts).module()
    return module, facts


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES[:-1], pytest.param(FAMILIES[-1], marks=pytest.mark.long)])
def test_families_give_the_same_logits_after_loading(name, tmp_path):
    torch.manual_seed(0)
    model = SEGMENTERS[name]().eval()
    written = export_pt2(model, SegmentationImageProcessor(), tmp_path / "model.pt2")
    assert written.difference < 1e-5
    assert written.multiple == (32 if name in WHOLE_CELLS else 1)


@pytest.mark.slow
def test_bytes_become_ids_and_labels_are_in_the_file(model, tmp_path, capsys):
    source, file = tmp_path / "model", tmp_path / "streets.pt2"
    processor = SegmentationImageProcessor(palette=[[9, 0, 0], [0, 9, 0], [0, 0, 9]])
    model.save_pretrained(source)
    processor.save_pretrained(source)
    assert main([str(source), "--pt2", str(file), "--with-processing"]) == 0
    assert "checked after loading with images of 4 other sizes" in capsys.readouterr().out
    module, facts = loaded(file, "labels", "palette")
    assert json.loads(facts["labels"]) == ["road", "sky", "tree"]
    assert json.loads(facts["palette"]) == [[9, 0, 0], [0, 9, 0], [0, 0, 9]]
    served = ServedIds(model, processor).eval()
    images = served.images(3, 45, 83)
    assert torch.equal(module(images), served(images))


@pytest.mark.slow
def test_a_file_with_other_results_is_not_left_behind(model, tmp_path, monkeypatch):
    monkeypatch.setattr(ServedLogits, "difference", lambda *_: 2e-3)
    with pytest.raises(
        ValueError, match="differ from the model's in PyTorch by 2.0e-03 of the logits' range"
    ):
        export_pt2(model, SegmentationImageProcessor(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
