"""contextseg-finetune: Trainer on our models and on transformers' own."""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import fields
from typing import get_args

import pytest
import torch
from cases import each, slow_but
from loopback_hub import loopback_hub
from safetensors.torch import load_file
from tiny import FOREIGN_SEGMENTERS, SEGMENTERS, tiny_glam_swin
from tiny_runs import CLASSES, write_data, write_pairs
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from contextseg import ConfusionMatrix, TrainerScores, reduce_logits
from contextseg.processing.data.augmentation import AugmentedDataset, JointAugmentation
from contextseg.processing.data.datasets import open_data
from contextseg.scripts.finetune import main
from contextseg.training.finetuning import trainer_arguments, without_token
from contextseg.training.finetuning_options import FinetuneOptions, trainer_options
from contextseg.training.trainer import (
    TRAINER_RANGES,
    SegmentationTrainer,
    SegmentationTrainingArguments,
    SetEpoch,
)

CLASS_COUNT = 150


MODELS = {name: SEGMENTERS[name] for name in ("glam_swin", "maformer", "cswin", "segdeformer")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with one checkpoint of every kind; SegFormer's normalizes images in its own way."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, build in (MODELS | FOREIGN_SEGMENTERS).items():
        torch.manual_seed(0)
        build().save_pretrained(folder / name)
    SegformerImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder / "segformer")
    return folder


def options(model, data, output, **changes):
    chosen = {
        **{"init_from": model, "train": f"{data}/train", "val": f"{data}/val", "output": output},
        **{"crop_size": "16x24", "per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-3},
        **{"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", **changes},
    }
    return [f"--{name}={value}" for name, value in chosen.items() if value != ""]


def weights(folder):
    return load_file(folder / "model.safetensors")


def logged_losses(run, step):
    state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def scores_of(folder, data):
    """Mean IoU of a saved model over whole images, each mask at its own size, by the processor and our confusion matrix."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    confusion = ConfusionMatrix(len(CLASSES))
    for sample in open_data(data):
        mask = torch.from_numpy(sample["mask"])
        with torch.no_grad():
            outputs = model(processor(sample["image"], return_tensors="pt")["pixel_values"])
        confusion.update(
            processor.post_process_semantic_segmentation(outputs, target_sizes=[mask.shape])[0], mask
        )
    return confusion.compute()


@pytest.mark.parametrize("name", slow_but(MODELS | FOREIGN_SEGMENTERS, "glam_swin", "segformer"))
def test_any_segmenter_is_tuned_and_its_scores_are_those_of_the_saved_model(
    name, checkpoints, data, tmp_path
):
    assert main(options(checkpoints / name, data, tmp_path)) == 0
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.id2label[2] == CLASSES[2]
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    assert scores["mean_iou"] == scores_of(tmp_path, data / "val")["mean_iou"]
    assert [row["name"] for row in scores["per_class"]] == CLASSES
    assert (tmp_path / "loss.png").exists()


def test_a_checkpoint_keeps_its_own_mean_and_ignores_what_the_data_ignore(checkpoints, tmp_path):
    table = json.loads((write_data(tmp_path / "data") / "classes.json").read_text())
    (tmp_path / "data" / "classes.json").write_text(
        json.dumps(table | {"ignore_index": 99, "label_map": {"0": 0, "1": 1, "2": 2, "255": "ignore"}})
    )
    main(options(checkpoints / "segformer", tmp_path / "data", tmp_path / "run"))
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").image_mean == (0.1, 0.2, 0.3)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.semantic_loss_ignore_index == 99


@each(("name", "has_labels"), [("glam_swin", True), ("segformer", False)])
def test_the_card_is_trainers_with_our_part_for_our_models(name, has_labels, checkpoints, data, tmp_path):
    main(options(checkpoints / name, data, tmp_path, hub_token="hf_secret"))
    card = (tmp_path / "README.md").read_text()
    assert ("contextseg-finetune --init_from" in card) == has_labels
    assert "hf_secret" not in card + (tmp_path / "run.json").read_text()
    assert "### Training hyperparameters" in card
    assert "- image-segmentation" in card
    assert ("## Labels" in card) == has_labels
    assert str(checkpoints) not in card


@pytest.mark.parametrize("name", slow_but(["glam_swin", "segformer"], "glam_swin"))
def test_the_loss_falls_on_an_easy_set(name, checkpoints, data, tmp_path):
    run = {"max_steps": 60, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 60}
    main([*options(checkpoints / name, data, tmp_path, logging_steps=10, **run), "--no-augmentation"])
    losses = logged_losses(tmp_path, 60)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", slow_but(MODELS | FOREIGN_SEGMENTERS))
def test_accumulated_batches_are_averaged(name, checkpoints, data, tmp_path):
    """Of a loss that is a mean, transformers would take the sum for models that do not say so."""
    run = {"learning_rate": 0, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "max_steps": 1}
    for accumulation in (1, 2):
        accumulated = {"gradient_accumulation_steps": accumulation, **run}
        main(options(checkpoints / name, data, tmp_path / str(accumulation), **accumulated))
    (one,), (two,) = (logged_losses(tmp_path / folder, 1) for folder in ("1", "2"))
    assert two == pytest.approx(one, rel=0.2)


@pytest.mark.slow
@each("lora", [0, 2])
def test_trainers_own_options_work(lora, checkpoints, data, tmp_path):
    more = {"bf16": not lora, "gradient_checkpointing": True, "report_to": "tensorboard", "lora": lora}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "mean_iou", "eval_strategy": "steps"}
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    ours = {"freeze": "patch_embed", "crops_per_image": 2, "loss": "tversky", "early_stopping": 2}
    main(options(checkpoints / "glam_swin", data, tmp_path, **more, **best, **steps, **ours))
    before, after = (
        weights(folder)["backbone.encoder.patch_embed.projection.weight"]
        for folder in (checkpoints / "glam_swin", tmp_path)
    )
    assert torch.equal(before, after)
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.loss == "tversky"
    assert list(tmp_path.rglob("events.*"))
    assert (
        json.loads((tmp_path / "evaluation.json").read_text())["mean_iou"]
        == json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["best_metric"]
    )


@pytest.mark.parametrize("lora", slow_but([0, 2], 2))
def test_resume_in_mid_epoch_equals_the_uninterrupted_run_bit_for_bit(lora, data, tmp_path):
    tiny_glam_swin(drop_path_rate=0.5).save_pretrained(tmp_path / "start")
    run = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lora": lora}
    main(options(tmp_path / "start", data, tmp_path / "whole", **run))
    torch.manual_seed(1)  # a new process would not be where the old one was
    part = tmp_path / "whole" / "checkpoint-3"
    main(options(tmp_path / "start", data, tmp_path / "resumed", resume_from_checkpoint=part, **run))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_every_epoch_augments_anew_and_workers_that_persist_know_it(data, tmp_path):
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, pixel_values, labels=None):  # noqa: ARG002
            seen.append(pixel_values.sum().item())
            return {"loss": self.weight**2}

    def collate(samples):
        return {"pixel_values": torch.stack([torch.from_numpy(sample["mask"]) for sample in samples])}

    samples = AugmentedDataset(open_data(data / "train"), JointAugmentation((16, 16)))
    arguments = TrainingArguments(
        *(str(tmp_path),), num_train_epochs=3, per_device_train_batch_size=5, use_cpu=True, report_to="none",
        remove_unused_columns=False, dataloader_num_workers=1, dataloader_persistent_workers=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(Spy(), arguments, collate, samples, callbacks=[SetEpoch()]).train()
    expected = []
    for epoch in range(3):
        samples.set_epoch(epoch)
        expected.append(sum(int(samples[index]["mask"].sum()) for index in range(5)))
    assert seen == expected
    assert len(set(seen)) == 3


def held_bytes():
    """In tensors, and in all that Python and numpy have allocated."""
    tensors = (found for found in gc.get_objects() if type(found) is torch.Tensor)
    storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(storages.values()) + tracemalloc.get_traced_memory()[0]


class Generated(torch.nn.Module):
    """Logits of 150 classes that follow from the image alone; notes what is held at every 50th call."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(CLASS_COUNT, 3, 1, 1))
        self.calls = 0
        self.held = []

    def forward(self, pixel_values, labels=None):  # noqa: ARG002
        self.calls += 1
        if self.calls % 50 == 0:
            self.held.append(held_bytes())
        logits = torch.nn.functional.conv2d(pixel_values, self.weight.cumsum(0))
        return SemanticSegmenterOutput(loss=logits.mean(), logits=logits)


def memory_of_evaluation(tmp_path, images, **changes):
    """Growth from image 50 to the last one."""
    image = {"pixel_values": torch.rand(3, 12, 12), "labels": torch.randint(CLASS_COUNT, (48, 48))}
    model = Generated()
    arguments = TrainingArguments(
        *(str(tmp_path),), per_device_eval_batch_size=1, use_cpu=True, report_to="none", disable_tqdm=True,
        **changes,
    )  # fmt: skip
    hooks = {"compute_metrics": TrainerScores(CLASS_COUNT), "preprocess_logits_for_metrics": reduce_logits}
    trainer = Trainer(model, arguments, eval_dataset=[image] * images, **hooks)
    tracemalloc.start()
    try:
        trainer.evaluate()
    finally:
        tracemalloc.stop()
    return model.held[-1] - model.held[0]


@pytest.mark.slow
def test_memory_of_evaluation_does_not_grow_with_the_images(tmp_path):
    """200 images x 150 classes. What Trainer keeps without `batch_eval_metrics` is the control."""
    a_map = 48 * 48 * (8 + 4)  # bytes of labels and prediction
    assert memory_of_evaluation(tmp_path, 100) >= 50 * a_map
    assert memory_of_evaluation(tmp_path, 200, batch_eval_metrics=True) < 20 * a_map


def run_module(arguments, folder, environment=None, launcher=()):
    finished = subprocess.run(
        [sys.executable, *launcher, "-m", "contextseg.scripts.finetune", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.processes
def test_two_processes_count_images_of_any_size_once(checkpoints, tmp_path):
    """Three images of three sizes: the second process sees one of them again, only to keep in step."""
    data = tmp_path / "data"
    for seed, (name, size) in enumerate({"first": (21, 35), "second": (41, 30), "third": (20, 33)}.items()):
        write_pairs(tmp_path / name, 1, size=size, seed=seed)
        for kind in ("images", "masks"):
            (data / "val" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / kind / "scene0.png").rename(data / "val" / kind / f"{name}.png")
    write_pairs(data / "train", 5)
    (data / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    arguments = options(checkpoints / "glam_swin", data, tmp_path / "run", per_device_train_batch_size=1)
    run_module(arguments, tmp_path, launcher=launcher)
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    alone = scores_of(tmp_path / "run", data / "val")
    assert scores["mean_iou"] == alone["mean_iou"]
    assert [row["support"] for row in scores["per_class"]] == [row["support"] for row in alone["per_class"]]


@pytest.mark.processes
def test_two_processes_what_is_pushed_opens_and_states_its_scores(checkpoints, data, tmp_path):
    """With LoRA: its checkpoints are adapters, and what is published is the merged model."""
    with loopback_hub() as hub:
        environment = hub.environment(tmp_path / "cache")
        pushing = {"push_to_hub": True, "hub_model_id": "me/tuned", "lora": 2}
        pushing |= {"save_strategy": "steps", "save_steps": 1}
        run_module(
            options(checkpoints / "glam_swin", data, tmp_path / "run", **pushing), tmp_path, environment
        )
        files = hub.files("me/tuned")
    assert {"modeling_glam_swin.py", "evaluation.json", "preprocessor_config.json"} <= files.keys()
    assert "adapter_config.json" not in files
    (tmp_path / "pulled").mkdir()
    for name, content in files.items():
        (tmp_path / "pulled" / name).write_bytes(content)
    scores = json.loads(files["evaluation.json"])
    assert scores["mean_iou"] == scores_of(tmp_path / "pulled", data / "val")["mean_iou"]
    card = files["README.md"].decode()
    assert "pipeline_tag: image-segmentation" in card
    assert "## Training procedure" in card  # Trainer's part
    assert "## Labels" in card  # ours


def test_a_token_never_gets_into_the_record():
    argv = ["--lora", "8", "--hub-token", "secret", "--hub_token=secret", "--push_to_hub"]
    assert without_token(argv) == ["--lora", "8", "--push_to_hub"]


ERRORS = {
    "missing folder": ({"train": "./nowhere/train"}, "nowhere/train"),
    "columns": ({"remove_unused_columns": True}, "Leave out both options"),
    "noise of token embeddings": ({"neftune_noise_alpha": 5}, "are for texts"),
    "lengths of texts": ({"train_sampling_strategy": "group_by_length"}, "are for texts"),
    "early stopping alone": (
        {"early_stopping": 2},
        "--early-stopping needs --val and --load_best_model_at_end",
    ),
    "unknown module": ({"freeze": "stages.9"}, "--freeze stages.9: no module of GlamSwin"),
    "large batch": ({"per_device_train_batch_size": 6}, "a batch of 6 is larger than the training set of 5"),
}


@each(("changes", "message"), ERRORS)
def test_an_error_says_what_to_do(changes, message, checkpoints, data, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(options(**{"model": checkpoints / "glam_swin", "data": data, "output": tmp_path} | changes))
    assert message in str(caught.value)


@each(
    "words",
    [
        ["--max_steps", "0"],
        ["--num_train_epochs", "0"],
        ["--learning_rate", "nan"],
        ["--max_grad_norm", "inf"],
        ["--per_device_train_batch_size", "0"],
        ["--gradient_accumulation_steps", "-1"],
        ["--label_smoothing_factor", "1"],
        ["--save_steps", "0"],
        ["--seed", "-1"],
    ],
)
def test_trainers_numbers_have_ranges_too(words, tmp_path):
    with pytest.raises(ValueError, match=f"{words[0]} is .*, but must be"):
        trainer_arguments(str(tmp_path), words)


def test_every_number_of_trainer_has_a_range():
    kinds = {field.name: {field.type, *get_args(field.type)} for field in fields(TrainingArguments)}
    numbers = {name for name, found in kinds.items() if found & {int, float} and str not in found}
    assert numbers - TRAINER_RANGES.keys() <= {"local_rank"}


def test_weights_that_are_not_finite_never_replace_a_saved_model(tmp_path):
    model = tiny_glam_swin()
    trainer = SegmentationTrainer(model, trainer_arguments(str(tmp_path), ["--use_cpu"]))
    trainer.save_model()
    good = weights(tmp_path)
    model.classifier.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="step 0 was not saved: the weight classifier.weight"):
        trainer.save_model()
    assert all(torch.equal(tensor, good[name]) for name, tensor in weights(tmp_path).items())


def test_a_run_is_never_overwritten(checkpoints, data, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(SystemExit, match="already holds checkpoints. Continue with --resume,"):
        main(options(checkpoints / "glam_swin", data, tmp_path))


def test_trainers_bars_are_lines_where_the_output_is_no_terminal(tmp_path):
    assert trainer_arguments(str(tmp_path), []).disable_tqdm
    assert not trainer_arguments(str(tmp_path), ["--disable_tqdm", "false"]).disable_tqdm


def test_a_misspelled_option_is_answered_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit):
        main(["--output_dri", "runs"])
    assert "no option --output_dri, did you mean --output_dir?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--output", "runs", "--learning_rat", "1"])
    assert "no option --learning_rat, did you mean --learning_rate?" in capsys.readouterr().err


def test_our_options_and_those_of_trainer_have_different_names_and_all_of_them_are_known():
    trainers = {f"--{field.name}" for field in fields(SegmentationTrainingArguments) if field.init}
    assert trainers - {"--output_dir"} <= set(trainer_options())
    assert not trainers & {f"--{field.name}" for field in fields(FinetuneOptions)}
