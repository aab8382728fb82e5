"""Training that starts from another model's weights: encoders of transformers, SegFormer."""

import json

import pytest
import torch
from tiny import tiny_mit
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerForSemanticSegmentation,
)

from contextseg.scripts import train


def run(data, output, *options):
    """A run of one step at a learning rate that changes nothing, from which its last model is read."""
    arguments = ["--train", str(data / "train"), "--val", str(data / "val"), "--output", str(output)]
    small = ["--crop-size", "32", "--batch-size", "2", "--steps", "1", "--learning-rate", "0"]
    assert train.main([*arguments, *small, "--workers", "0", "--cpu", "--tracker", "none", *options]) == 0
    return AutoModelForSemanticSegmentation.from_pretrained(output / "last")


def test_any_encoder_checkpoint_starts_a_run_and_keeps_its_normalisation(data, tmp_path):
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


def test_a_segformer_checkpoint_starts_a_run(data, tmp_path):
    segformer = SegformerForSemanticSegmentation(tiny_mit(decoder_hidden_size=8, num_labels=2))
    segformer.save_pretrained(tmp_path / "segformer")
    model = run(data, tmp_path / "run", "--model", "segdeformer", "--segformer", str(tmp_path / "segformer"))
    torch.testing.assert_close(
        model.backbone.encoder.model.state_dict(), segformer.segformer.state_dict(), rtol=0, atol=0
    )
    assert model.config.neck == "segformer"


def test_a_start_that_a_model_does_not_have_is_refused(data, tmp_path):
    with pytest.raises(SystemExit, match="--segformer does not fit 'glam_swin'. Use --model segdeformer"):
        run(data, tmp_path / "run", "--segformer", "nvidia/mit-b0")
