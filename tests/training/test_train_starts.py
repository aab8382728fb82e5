"""Training that starts from another model's weights: encoders of transformers, SegFormer."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from cases import each
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny import tiny_glam_swin, tiny_mit, tiny_segdeformer, tiny_segformer, tiny_upernet
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BertConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from contextseg.modeling import pretrained_backbones
from contextseg.modeling.backbone_building import build_encoder
from contextseg.scripts import train
from contextseg.training.models import SEGMENTER, ignore_index_field
from contextseg.training.options import SegmentationArguments
from contextseg.training.segmentation import SegmentationTask, counted_pixels, warn_of_full_attention
from contextseg.training.starting_points import build_model


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
        *("--init-from", str(tmp_path / "resnet"), "--set", "decoder_hidden_size=8"),
    )
    name = "encoder.stages.0.layers.0.layer.0.convolution.weight"
    loaded = {
        key.removeprefix("resnet."): value for key, value in model.backbone.encoder.state_dict().items()
    }
    assert torch.equal(loaded[name], encoder.resnet.state_dict()[name])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "last")
    assert list(processor.image_mean) == settings["image_mean"]
    assert list(processor.image_std) == settings["image_std"]
    run(data, tmp_path / "tuned", "--init-from", str(tmp_path / "run"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tuned" / "last")
    assert list(processor.image_mean) == settings["image_mean"]


def test_a_segformer_checkpoint_starts_a_run(data, tmp_path):
    segformer = SegformerForSemanticSegmentation(tiny_mit(decoder_hidden_size=8, num_labels=2))
    segformer.save_pretrained(tmp_path / "segformer")
    model = run(data, tmp_path / "run", "--model", "segdeformer", "--init-from", str(tmp_path / "segformer"))
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


SMALL = {"decoder_hidden_size": 8, "auxiliary_hidden_size": 8}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32}
    SwinModel(SwinConfig(**sizes)).save_pretrained(folder / "swin")
    swin = SwinConfig(**sizes, out_features=["stage1", "stage2"])
    heads = UperNetConfig(backbone_config=swin, hidden_size=8, use_auxiliary_head=False, num_labels=2)
    UperNetForSemanticSegmentation(heads).save_pretrained(folder / "upernet")
    segformer = tiny_mit(decoder_hidden_size=8, num_labels=2)
    SegformerForSemanticSegmentation(segformer).save_pretrained(folder / "segformer")
    tiny_glam_swin(id2label={0: "x", 1: "y"}).save_pretrained(folder / "glam")
    BertConfig().save_pretrained(folder / "bert")
    (folder / "empty").mkdir()
    (folder / "strange").mkdir()
    (folder / "strange" / "config.json").write_text("{}")
    return folder


STARTED = {
    "a Swin": ("swin", None, SMALL, "GlamSwinForSemanticSegmentation"),
    "a Swin as an encoder": ("swin", "segdeformer", SMALL, "SegDeformerForSemanticSegmentation"),
    "a UPerNet stays itself": ("upernet", None, {}, "UperNetForSemanticSegmentation"),
    "a UPerNet with Swin": ("upernet", "glam_swin", {}, "GlamSwinForSemanticSegmentation"),
    "a SegFormer stays itself": ("segformer", None, {}, "SegformerForSemanticSegmentation"),
    "a SegFormer": ("segformer", "segdeformer", {}, "SegDeformerForSemanticSegmentation"),
    "ours": ("glam", None, {}, "GlamSwinForSemanticSegmentation"),
    "the encoder of ours": ("glam", "segdeformer", SMALL, "SegDeformerForSemanticSegmentation"),
}


@each(("source", "name", "options", "kind"), STARTED)
def test_a_checkpoint_is_recognized_and_what_is_new_is_said_in_one_line(
    source, name, options, kind, checkpoints, caplog
):
    caplog.clear()
    model = build_model(
        SEGMENTER, name, None, class_names=["a", "b"], options=options, init_from=str(checkpoints / source)
    )
    assert type(model).__name__ == kind
    (line,) = [record.message for record in caplog.records if "newly initialized" in record.message]
    assert "\n" not in line


def test_a_timm_name_starts_the_model_that_takes_any_encoder(monkeypatch):
    monkeypatch.setattr(pretrained_backbones, "build_encoder", without_download)
    model = build_model(
        SEGMENTER, None, None, class_names=["a", "b"], options=SMALL, init_from="timm/resnet18.a1_in1k"
    )
    assert type(model).__name__ == "SegDeformerForSemanticSegmentation"
    assert model.config.backbone_config.backbone == "resnet18.a1_in1k"


def test_weights_of_timm_without_a_connection_are_named(monkeypatch):
    no_answer = Mock(
        side_effect=LocalEntryNotFoundError("cannot find the requested files in the local cache")
    )
    monkeypatch.setattr(pretrained_backbones, "build_encoder", no_answer)
    with pytest.raises(ValueError, match="--init-from resnet18: the weights .* the Hub does not answer"):
        build_model(SEGMENTER, None, None, class_names=["a", "b"], options=SMALL, init_from="resnet18")


def without_download(*arguments, pretrained=False):  # noqa: ARG001
    return build_encoder(*arguments)


def test_a_model_of_transformers_has_no_field_for_another_loss(checkpoints):
    options = {"loss": "dice"}
    with pytest.raises(ValueError, match="a 'segformer' of transformers, which has no field 'loss'"):
        build_model(
            SEGMENTER,
            None,
            None,
            class_names=["a"],
            options=options,
            init_from=str(checkpoints / "segformer"),
        )


REFUSED = {
    "another of our models": (
        "swin",
        "maformer",
        "cannot start --model maformer. .*use --model glam_swin or ",
    ),
    "an unknown model": ("swin", "glam_swim", "no model 'glam_swim'"),
    "no image encoder": (
        "bert",
        None,
        "a checkpoint of 'bert', cannot start a model for semantic segmentation",
    ),
    "no model type": ("strange", None, "understands"),
    "an empty folder": ("empty", None, "has no config.json"),
}


@each(("source", "name", "message"), REFUSED)
def test_a_checkpoint_that_cannot_start_the_model_is_refused_in_one_sentence(
    source, name, message, checkpoints
):
    with pytest.raises(ValueError, match=message) as caught:
        build_model(
            SEGMENTER, name, None, class_names=["a", "b"], options={}, init_from=str(checkpoints / source)
        )
    assert "\n" not in str(caught.value)


@each("spelling", ["--weights", "--swin", "--segformer", "--backbone"])
def test_a_former_spelling_is_answered_with_the_new_one(spelling, capsys):
    with pytest.raises(SystemExit):
        train.main([spelling, "somewhere"])
    assert f"no option {spelling}: it is --init-from now." in capsys.readouterr().err


def test_full_attention_of_segdeformer_on_large_crops_is_told(caplog):
    for ratio, crop in ((1, (512, 512)), (4, (512, 512)), (1, (256, 256))):
        warn_of_full_attention(tiny_segdeformer(reduction_ratio=ratio).config, crop)
    warn_of_full_attention(SegformerConfig(), (512, 512))  # another decoder
    (told,) = caplog.messages
    assert "512x512" in told
    assert "--set reduction_ratio=4" in told
