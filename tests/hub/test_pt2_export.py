"""Files of torch.export: results equal the model's at any size, and what cannot be traced leaves no file."""

import json

import pytest
import torch
from cases import slow_but
from tiny import FOREIGN_SEGMENTERS, SEGMENTERS, VOLUMES, tiny_glam_swin, tiny_relay

from contextseg import SegmentationImageProcessor, export_pt2
from contextseg.hub.served_segmenters import ServedIds, ServedLogits
from contextseg.scripts.export import main

# Tracing and loading take up to half a minute: of the models that share their parts, one always runs.
FAMILIES = {name: make for name, make in (SEGMENTERS | FOREIGN_SEGMENTERS).items() if name not in VOLUMES}
SHORT = "relay", "segdeformer", "upernet"


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
@pytest.mark.parametrize("name", slow_but(FAMILIES, short=SHORT))
def test_families_give_the_same_logits_after_loading(name, tmp_path):
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    written = export_pt2(model, SegmentationImageProcessor(), tmp_path / "model.pt2")
    assert written.difference < 1e-5
    assert written.multiple == 1


@pytest.mark.slow
@pytest.mark.long
def test_images_may_be_smaller_than_a_window_of_the_last_stage(tmp_path):
    torch.manual_seed(0)
    model = tiny_glam_swin(depths=(2, 2, 1, 1), num_heads=(1, 1, 2, 2), window_size=7).eval()
    export_pt2(model, SegmentationImageProcessor(), tmp_path / "model.pt2")
    module, _ = loaded(tmp_path / "model.pt2")
    with torch.no_grad():
        for size in ((1, 3, 40, 47), (1, 3, 224, 224), (2, 3, 64, 33)):
            pixels = torch.randn(size)
            torch.testing.assert_close(module(pixels), model(pixels).logits)


@pytest.mark.slow
def test_bytes_of_five_bands_become_ids_and_labels_are_in_the_file(tmp_path, capsys):
    torch.manual_seed(0)
    model = tiny_relay(num_channels=5).eval()
    source, file = tmp_path / "model", tmp_path / "streets.pt2"
    bands = {"do_convert_rgb": False, "image_mean": [0.1, 0.2, 0.3, 0.4, 0.5], "image_std": [0.2] * 5}
    colors = [[9, 0, 0], [0, 9, 0], [0, 0, 9]]
    processor = SegmentationImageProcessor(**bands, palette=colors, size={"shortest_edge": 48})
    model.save_pretrained(source)
    processor.save_pretrained(source)
    assert main([str(source), "--pt2", str(file), "--with-processing"]) == 0
    told = capsys.readouterr().out
    assert "checked after loading with images of 4 other sizes" in told
    assert "the image processor resizes images by {'shortest_edge': 48}" in told
    module, facts = loaded(file, "labels", "palette", "image_mean")
    assert json.loads(facts["labels"]) == ["road", "sky", "tree"]
    assert json.loads(facts["palette"]) == colors
    assert json.loads(facts["image_mean"]) == bands["image_mean"]
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
