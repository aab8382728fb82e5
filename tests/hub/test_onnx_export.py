"""ONNX files: results of onnxruntime equal PyTorch's at any size, and what cannot be exported is refused in sentences."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each, slow_but
from PIL import Image
from tiny import FOREIGN_SEGMENTERS, SEGMENTERS, VOLUMES, tiny_nnformer, tiny_relay

from contextseg import (
    GlamSwinConfig,
    GlamSwinForImageClassification,
    SegmentationImageProcessor,
    VolumeImageProcessor,
    export_onnx,
)
from contextseg.hub import onnx_export
from contextseg.hub.served_files import metadata
from contextseg.hub.served_processing import resize_rule
from contextseg.hub.served_segmenters import ServedIds, ServedLogits
from contextseg.scripts.export import main

GUIDE = Path(__file__).parents[2] / "docs/how-to/export.md"
# A translation takes half a minute: of the models that share their parts, one always runs.
FAMILIES = {name: make for name, make in (SEGMENTERS | FOREIGN_SEGMENTERS).items() if name not in VOLUMES}
SHORT = "relay", "segdeformer", "segformer", "upernet"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_relay().eval()


def saved(model, folder, processor=None):
    model.save_pretrained(folder)
    (processor or SegmentationImageProcessor()).save_pretrained(folder)
    return str(folder)


def served_by_guide(folder):
    """Runs the guide's example, in a process that cannot import torch, for streets.onnx and photo.jpg in `folder`."""
    code = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)[1]
    blocked = "import sys\nsys.modules.update(torch=None, contextseg=None, transformers=None)\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(FAMILIES, short=SHORT))
def test_every_family_gives_the_same_logits_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    written = export_onnx(model, SegmentationImageProcessor(), tmp_path / "model.onnx")
    assert written.difference < 1e-5
    assert written.multiple == 1


@pytest.mark.slow
def test_bytes_become_ids_where_torch_is_not_installed(model, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    source = saved(
        model, tmp_path / "model", SegmentationImageProcessor(palette=[[9, 0, 0], [0, 9, 0], [0, 0, 9]])
    )
    image = np.random.default_rng(0).integers(0, 256, (45, 83, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.jpg")
    assert main([source, "--onnx", str(tmp_path / "streets.onnx"), "--with-processing"]) == 0
    assert re.search(r"opset 20.*\n.*largest difference from PyTorch is \d\.\de", capsys.readouterr().out)
    example = served_by_guide(tmp_path)
    assert example.stdout == "['road', 'sky', 'tree'] (45, 83)\n", example.stderr
    processor = SegmentationImageProcessor.from_pretrained(source)
    with torch.no_grad():
        outputs = model(**processor(tmp_path / "photo.jpg", return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(45, 83)])
    mask = Image.open(tmp_path / "photo.png")
    assert (np.asarray(mask) == expected.numpy()).mean() > 0.999
    assert mask.getpalette()[:9] == [9, 0, 0, 0, 9, 0, 0, 0, 9]


@pytest.mark.slow
def test_a_file_with_other_results_is_not_left_behind(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ServedLogits, "difference", lambda *_: 2e-3)
    with pytest.raises(
        ValueError, match="differ from the model's in PyTorch by 2.0e-03 of the logits' range"
    ):
        export_onnx(model, SegmentationImageProcessor(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@each("kind", [ServedLogits, ServedIds])
def test_the_difference_of_results_is_that_of_the_logits(kind):
    torch.manual_seed(0)
    served = kind(tiny_relay().eval(), SegmentationImageProcessor())
    images = served.images(2, 20, 28)
    with torch.no_grad():
        result = served(images)
        assert served.difference(images, result) == 0
        assert served.difference(images, result[:1]) == float("inf")
        other = result + 1 if kind is ServedLogits else (result + 1) % 3
        assert served.difference(images, other) > 0.1


def test_ids_are_those_of_the_image_processor(model):
    processor = SegmentationImageProcessor(image_mean=[0.2, 0.5, 0.6], image_std=[0.3, 0.2, 0.1])
    served = ServedIds(model, processor)
    images = served.images(2, 21, 30)
    pixels = processor([image.numpy() for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = processor.post_process_semantic_segmentation(model(pixels), target_sizes=[(21, 30)] * 2)
        assert torch.equal(served(images), torch.stack(list(expected)).int())


def test_metadata_has_labels_and_what_to_do_with_images(model):
    facts = metadata(model, SegmentationImageProcessor(size={"height": 8, "width": 9}))
    facts = {name: json.loads(text) for name, text in facts.items()}
    assert facts["labels"] == ["road", "sky", "tree"]
    assert [len(color) for color in facts["palette"]] == [3, 3, 3]
    assert facts["size"] == {"height": 8, "width": 9}
    assert resize_rule(SegmentationImageProcessor()) is None


def test_models_and_paths_without_a_file_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("contextseg.hub.onnx_export.load_onnxruntime", lambda: None)
    classifier = GlamSwinForImageClassification(
        GlamSwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
    )
    folders = {
        "segmenter": saved(model, tmp_path / "segmenter"),
        "classifier": saved(classifier, tmp_path / "classifier"),
        "volumes": saved(tiny_nnformer(num_channels=1), tmp_path / "volumes", VolumeImageProcessor()),
    }
    (tmp_path / "old.onnx").touch()
    for name, option, file, message in (
        ("segmenter", "--onnx", "old.onnx", "already exists"),
        ("segmenter", "--pt2", "old.onnx", "already exists"),
        ("segmenter", "--onnx", "new.pt2", "files of --pt2 end like this"),
        ("segmenter", "--pt2", "new.onnx", "files of --onnx end like this"),
        ("segmenter", "--onnx", "missing/new.onnx", "the folder .* does not exist"),
        ("classifier", "--onnx", "new.onnx", "is for classification, and --onnx takes"),
        ("volumes", "--pt2", "new.pt2", "is for volumes, and --pt2 takes"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([folders[name], option, str(tmp_path / file)])


def test_without_a_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'contextseg\[onnx\]'"):
        onnx_export.load_onnxruntime()


def test_processing_alone_is_not_a_target(tmp_path):
    with pytest.raises(SystemExit, match="--with-processing is for a file"):
        main(["runs/streets", "--output", str(tmp_path / "model"), "--with-processing"])


@each(
    ("options", "message"),
    [
        (["--output", "model", "--int8"], "--int8 is for an ONNX file"),
        (["--onnx", "model.onnx", "--int8"], "--int8 needs images to calibrate with"),
        (["--onnx", "model.onnx", "--data", "val"], "--data is for --int8"),
    ],
)
def test_options_of_8_bits_need_each_other(options, message):
    with pytest.raises(SystemExit, match=message):
        main(["runs/streets", *options])
