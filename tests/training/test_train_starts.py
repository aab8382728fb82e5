"""Training that starts from another model's weights: encoders of transformers, SegFormer."""

import json
from types import SimpleNamespace

import pytest
import torch
from cases import each
from tiny import tiny_mit, tiny_segdeformer, tiny_segformer, tiny_upernet
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerForSemanticSegmentation,
)

from contextseg.scripts import train
from contextseg.training.models import ignore_index_field
from contextseg.training.options import SegmentationArguments
from contextseg.training.segmentation import SegmentationTask, counted_pixels


def run(data, output, *options):
    """A run of one step at a learning rate that changes nothing, from which its last model is read."""
    arguments = ["--train", str(data / "train"), "--val", str(data / "val"), "--output", str(output)]
    small = ["--crop-size", "32", "--batch-size", "2", "--steps", "1", "--learning-rate", "0"]
    assert train.main([*arguments, *small, "--workers", "0", "--cpu", "--tracker", "none", *options]) == 0
    return AutoModelForSemanticSegmentation.from_pretrained(output / "last")


def test_any_encoder_checkpoint_starts_a_run_and_keeps_its_normalization(data, tmp_path):
    sizes = {
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    }
    encoder = ResNetForImageClassification(ResNetConfig(**sizes))
    encoder.save_pretrained(tmp_path / "resnet")
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(settings))
    model = run(
        data,
        tmp_path / "run",
        *("--model", "segdeformer", "--backbone", str(tmp_path / "resnet"), "--set", "decoder_hidden_size=8"),
    )
    name = "encoder.stages.0.layers.0.layer.0.convolution.weight"
    loaded = {
        key.removeprefix("resnet."): value for key, value in model.backbone.encoder.state_dict().items()
    }
    assert torch.equal(loaded[name], encoder.resnet.state_dict()[name])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "last")
    assert list(processor.image_mean) == settings["image_mean"]
    assert list(processor.image_std) == settings["image_std"]
    run(data, tmp_path / "tuned", "--weights", str(tmp_path / "run"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tuned" / "last")
    assert list(processor.image_mean) == settings["image_mean"]


def test_a_segformer_checkpoint_starts_a_run(data, tmp_path):
    segformer = SegformerForSemanticSegmentation(tiny_mit(decoder_hidden_size=8, num_labels=2))
    segformer.save_pretrained(tmp_path / "segformer")
    model = run(data, tmp_path / "run", "--model", "segdeformer", "--segformer", str(tmp_path / "segformer"))
    torch.testing.assert_close(
        model.backbone.encoder.model.state_dict(), segformer.segformer.state_dict(), rtol=0, atol=0
    )
    assert model.config.neck == "segformer"


@each("build", [tiny_segformer, tiny_upernet, tiny_segdeformer])
def test_any_segmenter_ignores_the_label_that_the_data_ignores(build):
    """transformers has two names for it, and a label that is neither ignored nor a class is an error."""
    model = build().eval()
    SegmentationTask(SegmentationArguments()).prepare(model, SimpleNamespace(ignore_index=77))
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :9] = 77
    assert model(torch.zeros(1, 3, 32, 32), labels=labels).loss.isfinite()
    assert counted_pixels(labels, model.config) == 23 * 32


def test_a_model_whose_loss_ignores_nothing_is_refused():
    with pytest.raises(
        ValueError, match="'resnet' is not a semantic segmenter: its loss cannot ignore pixels"
    ):
        ignore_index_field(ResNetConfig())


def test_a_start_that_a_model_does_not_have_is_refused(data, tmp_path):
    with pytest.raises(
        SystemExit, match="--segformer does not work with --model glam_swin. Use --model segdeformer"
    ):
        run(data, tmp_path / "run", "--segformer", "nvidia/mit-b0")
