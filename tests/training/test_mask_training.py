"""Commands on mask-classification checkpoints of transformers, and their fine-tuning on semantic masks."""

import json

import numpy as np
import pytest
import torch
from cases import each
from mask_checkpoints import MASK_MODELS, NAMES, TILE, build, tiny_eomt
from PIL import Image
from tiny_runs import CLASSES
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    DetrConfig,
    DPTConfig,
    EomtImageProcessor,
    SamConfig,
    SegformerImageProcessor,
)

from contextseg import Inference, MaskSegmenter
from contextseg.scripts.evaluate import main as evaluate
from contextseg.scripts.export import main as export
from contextseg.scripts.finetune import main as finetune
from contextseg.scripts.predict import main as predict
from contextseg.scripts.train import main as train
from contextseg.training import model_files
from contextseg.training.finetuning_options import FinetuneOptions
from contextseg.training.mask_training import (
    check_options,
    image_side,
    mask_targets,
    rebuilt,
    start_from,
    with_targets,
)
from contextseg.training.models import SEGMENTER, check_kind, open_model
from contextseg.training.stored_reading import reduces
from contextseg.training.trainer import SegmentationTrainer, SegmentationTrainingArguments

ON_CPU = ["--workers", "0", "--cpu"]


def saved(kind, folder):
    model, processor = build(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def options(init_from, data, output, **changes):
    chosen = {
        **{"init_from": init_from, "train": f"{data}/train", "val": f"{data}/val", "output": output},
        **{"per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-3, "save_steps": 2},
        **{"use_cpu": True, "disable_tqdm": True, "report_to": "none", "logging_steps": 1},
        **{"lr_scheduler_type": "constant", **changes},
    }
    return [f"--{name}={value}" for name, value in chosen.items() if value is not None]


def losses(run):
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_ignored_pixels_are_in_no_mask():
    labels = torch.tensor([[[0, 2, 255], [2, 2, 255]], [[255, 255, 255], [255, 255, 255]]])
    targets = mask_targets(labels, 255)
    assert [ids.tolist() for ids in targets["class_labels"]] == [[0, 2], []]
    assert targets["mask_labels"][0].tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 0]]]
    assert targets["mask_labels"][1].shape == (0, 2, 3)


def test_a_batch_without_labeled_pixels_has_a_finite_loss_and_gradients():
    model, _ = build("eomt")
    inputs = {"pixel_values": torch.randn(2, 3, TILE, TILE), "labels": torch.full((2, TILE, TILE), 255)}
    loss = model.train()(**with_targets(inputs, model.config)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(weights.grad is None or weights.grad.isfinite().all() for weights in model.parameters())
    assert model.class_predictor.weight.grad.abs().sum() > 0


def test_classes_of_known_names_and_no_object_keep_their_weights():
    model = tiny_eomt()
    new = rebuilt(model, {0: "sky", 1: "car"}, [2, None], side=2 * TILE)
    assert new.config.id2label == {0: "sky", 1: "car"}
    before, after = model.class_predictor.weight, new.class_predictor.weight
    assert torch.equal(after[[0, 2]], before[[2, 3]])
    assert len(new.criterion.empty_weight) == 3
    assert new(torch.randn(1, 3, 2 * TILE, 2 * TILE)).masks_queries_logits.shape[-1] == 2 * TILE // 4


def test_a_model_rebuilt_as_it_was_is_the_same():
    model = tiny_eomt().eval()
    new, pixels = rebuilt(model, NAMES, [0, 1, 2], TILE).eval(), torch.randn(1, 3, TILE, TILE)
    assert torch.equal(new(pixels).masks_queries_logits, model(pixels).masks_queries_logits)


def test_eomts_ignore_index_says_that_ids_are_one_too_high():
    assert reduces(EomtImageProcessor(ignore_index=255))
    assert reduces(SegformerImageProcessor(do_reduce_labels=True))
    assert not reduces(EomtImageProcessor())
    assert not reduces(SegformerImageProcessor())


def test_trainer_evaluates_a_mask_model_on_any_size_at_the_size_of_the_labels(tmp_path):
    model, _ = build("eomt")
    trainer = SegmentationTrainer(model, SegmentationTrainingArguments(str(tmp_path), use_cpu=True))
    pixels, labels = torch.randn(1, 3, 40, 50), torch.randint(0, 3, (1, 40, 50))
    _, ids, kept = trainer.prediction_step(model, {"pixel_values": pixels, "labels": labels}, False)
    assert torch.equal(kept, labels)
    assert torch.equal(ids[0], Inference().mask(model, [pixels], (40, 50)))
    loss = trainer.compute_loss(
        model.train(), {"pixel_values": pixels[..., :32, :32], "labels": labels[:, :32, :32]}
    )
    assert loss > 0


@each(
    ("ours", "theirs", "message"),
    [
        ({"loss": "dice"}, {}, "--loss has no effect"),
        ({}, {"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no effect"),
        ({"early_stopping": 2}, {"metric_for_best_model": "loss"}, "--metric_for_best_model mean_iou"),
    ],
)
def test_options_that_do_not_go_with_a_loss_over_masks_are_refused(ours, theirs, message, tmp_path):
    given = FinetuneOptions(init_from="runs/eomt", train="data", output=str(tmp_path), **ours)
    with pytest.raises(ValueError, match=f"runs/eomt classifies masks.*{message}"):
        check_options(given, SegmentationTrainingArguments(str(tmp_path), use_cpu=True, **theirs))


@each("crop", ["32x64", "30"])
def test_crops_for_an_eomt_are_square_and_of_whole_patches(crop):
    with pytest.raises(ValueError, match=f"--crop-size {crop} is not a size for an EoMT with patches of 8"):
        image_side(tiny_eomt().config, crop)
    assert image_side(tiny_eomt().config, "24") == 24


@pytest.mark.slow
@each(
    ("command", "words"),
    [
        (predict, ["{model}", "{data}/val/images", "--output", "{model}/masks", "--cpu"]),
        (evaluate, ["{model}", "--data", "{data}/val", *ON_CPU]),
        (export, ["{model}", "--output", "{model}/exported"]),
        (finetune, options("{model}", "{data}", "{model}/run")),
        (train, ["--init-from", "{model}", "--train", "{data}/train", "--output", "{model}/run"]),
    ],
)
def test_a_sam_is_refused_in_one_sentence(command, words, data, tmp_path):
    SamConfig(architectures=["SamModel"]).save_pretrained(tmp_path / "sam")
    with pytest.raises(
        SystemExit, match="is a model of type 'sam', which segments what prompts point"
    ) as stop:
        command([word.format(model=tmp_path / "sam", data=data) for word in words])
    assert stop.value.code.count(". ") == stop.value.code.count("\n") == 0


@pytest.mark.slow
@each(
    "config",
    [DPTConfig(architectures=["DPTForDepthEstimation"]), DetrConfig(architectures=["DetrForSegmentation"])],
)
def test_models_of_depth_and_of_panoptic_masks_are_refused_with_the_types_that_are_taken(config):
    name = config.architectures[0]
    with pytest.raises(ValueError, match=rf"models/x holds a {name}, .* upernet, and eomt, eomt_dinov3, "):
        check_kind(config, SEGMENTER, "models/x")


def test_contextseg_train_names_the_command_that_trains_an_eomt(data, tmp_path):
    saved("eomt", tmp_path / "eomt")
    with pytest.raises(SystemExit, match=f"contextseg-finetune --init-from {tmp_path}/eomt"):
        train(["--init-from", f"{tmp_path}/eomt", "--train", f"{data}/train", "--output", f"{tmp_path}/run"])


def test_without_scipy_the_extra_is_named(monkeypatch, tmp_path):
    tiny_eomt().config.save_pretrained(tmp_path)
    monkeypatch.setattr(model_files, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'contextseg\[masks\]'"):
        open_model(str(tmp_path))


@pytest.mark.slow
def test_a_oneformer_with_its_own_vocabulary_needs_its_tokenizer(tmp_path):
    model, processor = build("oneformer")
    model.config.text_encoder_vocab_size = 100
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a vocabulary of 100 tokens and no tokenizer"):
        open_model(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MASK_MODELS)
def test_commands_take_a_mask_model_as_any_segmenter(kind, data, tmp_path):
    saved(kind, tmp_path / "model")
    model, processor, _ = open_model(str(tmp_path / "model"))
    assert isinstance(model, MaskSegmenter)
    image = data / "val/images/scene0.png"
    assert (
        predict([f"{tmp_path}/model", str(image), "--output", f"{tmp_path}/masks", "--confidence", *ON_CPU])
        == 0
    )
    expected = Inference()(model, processor, image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks/scene0.png")), expected)
    assert np.asarray(Image.open(tmp_path / "masks/confidence/scene0.png")).min() > 0
    assert evaluate([f"{tmp_path}/model", "--data", f"{data}/val", *ON_CPU]) == 0
    scores = json.loads((tmp_path / "model/evaluation.json").read_text())
    assert [row["name"] for row in scores["per_class"]] == CLASSES
    with pytest.raises(SystemExit):
        export([f"{tmp_path}/model", "--onnx", f"{tmp_path}/model.onnx"])
    assert export([f"{tmp_path}/model", "--output", f"{tmp_path}/exported", "--no-proof"]) == 0
    again, *_ = open_model(str(tmp_path / "exported"))
    assert torch.equal(Inference()(again, processor, image), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eomt", "maskformer"])
def test_a_tuned_mask_model_resumes_exactly_and_is_scored_as_it_was_saved(kind, data, tmp_path):
    saved(kind, tmp_path / "model")
    crop = None if kind.startswith("eomt") else "32x32"
    tune = {"init_from": tmp_path / "model", "data": data, "crop-size": crop}
    assert finetune(options(output=tmp_path / "whole", **tune, max_steps=4)) == 0
    assert finetune(options(output=tmp_path / "run", **tune)) == 0
    assert finetune([*options(output=tmp_path / "run", **tune, max_steps=4), "--resume"]) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert (
        evaluate([f"{tmp_path}/run", "--data", f"{data}/val", "--output", f"{tmp_path}/again", *ON_CPU]) == 0
    )
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["mean_iou"] == scores["mean_iou"]
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert list(model.config.id2label.values()) == CLASSES
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").size != {"shortest_edge": TILE}


@pytest.mark.slow
def test_crops_of_another_size_change_the_size_that_an_eomt_takes(data, tmp_path):
    saved("eomt", tmp_path / "model")
    finetune(options(tmp_path / "model", data, tmp_path / "run", **{"crop-size": "16"}))
    assert open_model(str(tmp_path / "run"))[0].tile == 16
    assert isinstance(start_from(str(tmp_path / "run"), CLASSES, None).config.image_size, int)
