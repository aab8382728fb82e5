import os
import re
import signal
import time
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from cases import each, slow_but
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import CLASSES, TINY_MODEL, run_options, write_data
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SwinConfig, SwinModel

import contextseg
from contextseg import GlamSwinConfig, SegmentationImageProcessor
from contextseg.processing.data.batches import SampleStream, TrainingSamples, position_of, training_loader
from contextseg.scripts.train import main
from contextseg.training import loop
from contextseg.training.checkpoints import CheckpointError, newest, write_folder
from contextseg.training.option_texts import crop_size, parse_overrides
from contextseg.training.options import ARGUMENTS, SegmentationArguments
from contextseg.training.records import Log, read_json, read_log
from contextseg.training.segmentation import SegmentationTask, new_augmentation
from contextseg.training.setup import new_schedule


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "streets"
    assert main(run_options(data, output)) == 0
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_best_and_last_open_by_the_auto_classes(run):
    for checkpoint in (run / "best", run / "last"):
        model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
        assert list(model.config.id2label.values()) == CLASSES
        assert AutoImageProcessor.from_pretrained(checkpoint).ignore_index == 255


def test_the_record_holds_arguments_versions_scores_and_hardware(run):
    record = read_json(run / "run.json")
    assert record["status"] == "finished"
    assert record["steps_done"] == record["best"]["step"] == 4
    assert record["arguments"]["batch_size"] == 2
    assert record["arguments"].keys() == {"task", *(field.name for field in fields(SegmentationArguments))}
    assert not {"random_erasing", "mix_token", "rand_augment", "shorter_side"} & record["arguments"].keys()
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["hardware"]["cores"] == os.cpu_count()
    assert [row["name"] for row in record["scores"]["per_class"]] == CLASSES


def test_the_log_holds_one_loss_a_step_and_the_scores(run):
    entries = read_log(run / "log.jsonl")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in entries if "mean_iou" in entry] == [4]


def test_training_learns(data, tmp_path):
    changes = ["--steps", "60", "--eval-interval", "60", "--learning-rate", "1e-2"]
    main([*run_options(data, tmp_path / "run"), *changes])
    assert read_json(tmp_path / "run" / "run.json")["best"]["mean_iou"] > 0.4


def test_tensorboard_has_curves_scores_of_classes_and_pictures(data, tmp_path, monkeypatch, capfd):
    passed, score = [0.0], SegmentationTask.score
    real = time.perf_counter

    def slow_score(*arguments):
        passed[0] += 3600
        return score(*arguments)

    monkeypatch.setattr(SegmentationTask, "score", slow_score)
    monkeypatch.setattr(time, "perf_counter", lambda: real() + passed[0])
    run = tmp_path / "run"
    main([*run_options(data, run), "--tracker", "tensorboard", "--steps", "2", "--eval-interval", "1"])
    (events,) = (run / "tensorboard").glob("events.*")
    content = events.read_bytes()
    assert all(content.count(f"iou/{name}".encode()) == 2 for name in ("wall", "grass", "sky"))
    assert (content.count(b"validation"), content.count(b"\x89PNG")) == (2, 2)
    assert Image.open(run / "loss.png").size == (1050, 600)
    assert 7200 <= read_json(run / "run.json")["seconds"] < 7800  # evaluations count
    out, err = capfd.readouterr()
    assert "2 steps in 12" in out
    assert not {"\r", "\x1b"} & {*out, *err}


def stop_after(step, monkeypatch):
    """Sends this process a SIGTERM while it does a step."""
    done = []

    def optimizer_step(*arguments):
        done.append(None)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    real = loop.optimizer_step
    monkeypatch.setattr(loop, "optimizer_step", optimizer_step)


TRAINED_PARTS = {
    "all": [],
    "LoRA and a frozen stem": ["--lora", "2", "--freeze", "patch_embed", "--layer-decay", "0.5"],
}


@pytest.mark.usefixtures("own_sigterm")
@pytest.mark.parametrize("trained", slow_but(TRAINED_PARTS, "all"))
def test_resume_after_sigterm_equals_the_uninterrupted_run_bit_for_bit(trained, data, tmp_path, monkeypatch):
    changes = [
        "--steps",
        "6",
        "--eval-interval",
        "2",
        "--ema",
        "0.9",
        "--accumulation",
        "2",
        "--set",
        "drop_path_rate=0.5",
        "--batch-size",
        "7",
        "--crops-per-image",
        "2",
        *TRAINED_PARTS[trained],
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*run_options(data, whole), *changes]) == 0
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        assert main([*run_options(data, parts), *changes]) == 128 + signal.SIGTERM
    assert read_json(parts / "run.json")["status"] == "stopped"
    torch.manual_seed(1)  # a new process would not be where the old one was
    assert main(["--output", str(parts), "--resume"]) == 0
    assert_equal_weights(whole / "last", parts / "last")
    assert_equal_weights(whole / "best", parts / "best")
    losses = [[e.get("loss") for e in read_log(folder / "log.jsonl")] for folder in (whole, parts)]
    assert losses[0] == losses[1]


def test_resume_refuses_options_that_would_change_the_result(run):
    with pytest.raises(
        SystemExit, match="Cannot resume with learning_rate=0.1: the run was started with learning_rate=0.001"
    ):
        main(["--output", str(run), "--resume", "--learning-rate", "0.1"])


def test_resume_of_a_finished_run_changes_nothing(run):
    before = weights(run / "last")
    assert main(["--output", str(run), "--resume"]) == 0
    after = weights(run / "last")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_average_is_what_the_checkpoint_holds(data, tmp_path):
    main([*run_options(data, tmp_path / "run"), "--ema", "0.9"])
    state = torch.load(tmp_path / "run" / "last" / "training_state.pt")
    saved = weights(tmp_path / "run" / "last")["classifier.weight"]
    assert torch.equal(saved, state["average"]["weights"]["classifier.weight"])
    assert not torch.equal(saved, state["model"]["classifier.weight"])


def test_a_non_finite_loss_stops_with_the_samples_names(data, tmp_path):
    with pytest.raises(SystemExit, match=r"the loss of step \d is (nan|inf). Its samples: scene\d, scene\d"):
        main([*run_options(data, tmp_path / "run"), "--learning-rate", "1e30"])


def test_other_classes_renew_the_head_and_keep_equal_names(run, tmp_path, caplog):
    other = write_data(tmp_path / "data", classes=["sky", "wall", "water", "road"])
    options = ["--train", f"{other}/train", "--output", str(tmp_path / "new"), "--init-from", str(run)]
    main(
        [
            *options,
            "--crop-size",
            "16",
            "--batch-size",
            "1",
            "--steps",
            "1",
            "--workers",
            "0",
            "--learning-rate",
            "0",
        ]
    )
    assert "2 keep their weights by name, 2 are new" in caplog.text
    old, new = (
        weights(run / "best")["classifier.weight"],
        weights(tmp_path / "new" / "last")["classifier.weight"],
    )
    assert torch.equal(new[:2], old[[2, 0]])


def test_any_segmenter_of_transformers_trains(data, tmp_path):
    sizes = [
        "depths=[1,1]",
        "hidden_sizes=[8,16]",
        "num_encoder_blocks=2",
        "decoder_hidden_size=8",
        "sr_ratios=[2,1]",
    ]
    sizes += ["num_attention_heads=[1,2]", "patch_sizes=[3,3]", "strides=[4,2]", "mlp_ratios=[2,2]"]
    options = [
        "--train",
        f"{data}/train",
        "--val",
        f"{data}/val",
        "--output",
        str(tmp_path / "run"),
        "--model",
        "segformer",
    ]
    options += [part for size in sizes for part in ("--set", size)]
    assert main([*options, "--crop-size", "32", "--batch-size", "2", "--steps", "2", "--workers", "0"]) == 0
    assert read_json(tmp_path / "run" / "run.json")["best"]["mean_iou"] >= 0


ERRORS = {
    "missing folder": (["--train", "./nowhere/train"], "nowhere/train"),
    "unknown model": (["--model", "glam_swim"], "no model 'glam_swim'"),
    "unknown preset": (["--preset", "huge"], "no preset 'huge'"),
    "unknown field": (["--set", "window_sizee=4"], "did you mean 'window_size'"),
    "no value": (["--set", "window_size"], "--set NAME=VALUE"),
    "two starts": (["--preset", "nano", "--init-from", "b"], "Give only one of them"),
    "two lengths": (["--epochs", "3"], "--steps and --epochs"),
    "bad crop": (["--crop-size", "12by4"], "HEIGHTxWIDTH"),
    "bad factor": (["--lr-factor", "decoder"], "PART=FACTOR"),
    "missing weights": (["--init-from", "./nowhere"], "there is no folder nowhere"),
    "nothing to resume": (["--resume"], "Leave out --resume"),
}


@each(("changes", "message"), ERRORS)
def test_an_error_says_what_to_do_and_leaves_no_run_behind(changes, message, data, tmp_path, capsys):
    options = run_options(data, tmp_path / "run", model=[] if "./nowhere" in changes else TINY_MODEL)
    with pytest.raises(SystemExit) as caught:
        main([*options, *changes])
    assert message in f"{caught.value} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()


@each(
    ("option", "changes", "message"),
    {
        "training data": ("--train", [], "--train is missing"),
        "early stopping alone": (
            "--val",
            ["--early-stopping", "2"],
            "--early-stopping compares validation scores",
        ),
    },
)
def test_a_missing_option_is_named_before_anything_is_written(
    option, changes, message, data, tmp_path, capsys
):
    options = run_options(data, tmp_path / "run")
    place = options.index(option)
    with pytest.raises(SystemExit) as caught:
        main([*options[:place], *options[place + 2 :], *changes])
    assert message in f"{caught.value} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()


def test_a_run_without_progress_ends_early_says_so_and_goes_on_with_more_patience(data, tmp_path, capsys):
    changes = ["--steps", "6", "--eval-interval", "1", "--learning-rate", "0", "--early-stopping", "2"]
    assert main([*run_options(data, tmp_path / "run"), *changes]) == 0
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["steps_done"], record["evaluations_since_best"]) == ("finished", 3, 2)
    assert "stopped early of 6: no better score in 2 evaluations" in capsys.readouterr().out
    resume = ["--output", str(tmp_path / "run"), "--resume"]
    assert main(resume) == 0
    assert read_json(tmp_path / "run" / "run.json")["steps_done"] == 3
    assert main([*resume, "--early-stopping", "3"]) == 0
    assert read_json(tmp_path / "run" / "run.json")["steps_done"] == 4


def test_a_run_is_never_overwritten(run, data):
    with pytest.raises(SystemExit, match="already holds a run"):
        main(run_options(data, run))


def test_a_run_that_left_no_checkpoint_can_be_started_again(data, tmp_path):
    with pytest.raises(SystemExit, match="not finite|is nan|is inf"):
        main([*run_options(data, tmp_path / "run"), "--learning-rate", "1e30"])
    with pytest.raises(SystemExit, match="there is no checkpoint in .* Leave out --resume"):
        main(["--output", str(tmp_path / "run"), "--resume"])
    assert main([*run_options(data, tmp_path / "run"), "--steps", "1"]) == 0
    assert {entry["step"] for entry in read_log(tmp_path / "run" / "log.jsonl")} == {1}


def test_swin_weights_are_what_a_run_with_swin_starts_from(data, tmp_path):
    config = SwinConfig(embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4, image_size=32)
    swin = SwinModel(config)
    swin.save_pretrained(tmp_path / "swin")
    sizes = ["--set", "decoder_hidden_size=8", "--set", "auxiliary_hidden_size=8"]
    options = run_options(data, tmp_path / "run", model=["--init-from", str(tmp_path / "swin"), *sizes])
    main([*options, "--steps", "1", "--learning-rate", "0"])
    loaded = weights(tmp_path / "run" / "last")["backbone.encoder.patch_embed.projection.weight"]
    assert torch.equal(loaded, swin.embeddings.patch_embeddings.projection.weight)


def test_splits_with_different_classes_are_refused(data, tmp_path):
    other = write_data(tmp_path / "data", classes=["sky", "wall", "grass"])
    with pytest.raises(SystemExit, match="Use the same classes.json for both"):
        main([*run_options(data, tmp_path / "run"), "--val", f"{other}/val"])


def test_a_crop_larger_than_the_images_pads(data, tmp_path):
    assert main([*run_options(data, tmp_path / "run"), "--crop-size", "64", "--steps", "1"]) == 0


def test_a_misspelled_option_is_answered_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit):
        main(["--batchsize", "2"])
    assert "no option --batchsize, did you mean --batch-size?" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for field in (field for kind in ARGUMENTS.values() for field in fields(kind)):
        assert re.search(rf"^  (--.*, )?--(no-)?{field.name.replace('_', '-')}\b", text, re.MULTILINE)


def test_overrides_are_numbers_lists_words_or_text():
    given = ["a=1", "b=[2,3]", "c=(4,5)", "d=true", "e=None", "loss=cross_entropy+dice", "f=1e-3"]
    expected = {
        "a": 1,
        "b": [2, 3],
        "c": (4, 5),
        "d": True,
        "e": None,
        "loss": "cross_entropy+dice",
        "f": 0.001,
    }
    assert parse_overrides(given) == expected


def test_a_crop_is_a_number_or_height_by_width():
    assert crop_size("512") == (512, 512)
    assert crop_size("360x480") == (360, 480)


def test_every_epoch_shows_every_image_once():
    stream = SampleStream(5, 2, seed=0, start=0, stop=5)
    keys = [key for batch in stream for key in batch]
    assert sorted(keys) == [(epoch, index) for epoch in range(2) for index in range(5)]
    assert [index for _, index in keys[:5]] != [index for _, index in keys[5:]]


def test_a_later_start_is_the_tail_of_the_same_stream():
    options = {"seed": 3, "stop": 9}
    assert list(SampleStream(7, 3, start=4, **options)) == list(SampleStream(7, 3, start=0, **options))[4:]


def test_several_crops_of_an_image_differ_and_are_spread_over_the_epoch():
    keys = [key for batch in SampleStream(5, 3, seed=0, start=0, stop=10, crops=3) for key in batch]
    assert sorted(keys) == [(epoch, index) for epoch in range(6) for index in range(5)]
    assert sorted(keys[:15]) == [(epoch, index) for epoch in range(3) for index in range(5)]
    assert {epoch for epoch, _ in keys[:5]} != {0}


def test_the_position_of_a_sample_follows_from_its_epoch_and_index():
    stream = SampleStream(5, 1, seed=2, start=0, stop=1, crops=3)
    assert [position_of(stream.key(p), 5, seed=2, crops=3) for p in range(40)] == list(range(40))


def test_one_crop_per_image_is_the_plain_stream():
    assert list(SampleStream(5, 2, seed=1, start=0, stop=9, crops=1)) == list(
        SampleStream(5, 2, seed=1, start=0, stop=9)
    )


def test_a_batch_may_be_larger_than_the_set():
    batches = list(SampleStream(20, 64, seed=0, start=0, stop=5))
    assert [len(set(batch)) for batch in batches] == [64] * 5
    assert {index for _, index in batches[0]} == set(range(20))
    arguments = SegmentationArguments(epochs=16, batch_size=64, crops_per_image=2)
    assert new_schedule(arguments, num_images=20, num_processes=1).steps == 10


def test_processes_share_the_stream_of_one():
    alone = [key for batch in SampleStream(10, 4, seed=0, start=0, stop=5) for key in batch]
    ranks = [list(SampleStream(10, 2, seed=0, start=0, stop=5, rank=rank, world=2)) for rank in range(2)]
    shared = [key for step in zip(*ranks, strict=True) for batch in step for key in batch]
    assert shared == alone


def test_batches_do_not_depend_on_the_number_of_workers(data):
    folder = contextseg.processing.data.datasets.SegmentationFolder(data / "train")
    augmentation = contextseg.processing.data.augmentation.JointAugmentation((16, 16), seed=0)
    samples = TrainingSamples(folder, augmentation, contextseg.SegmentationImageProcessor())
    batches = [
        list(
            training_loader(
                samples, SampleStream(5, 2, seed=0, start=0, stop=3), workers=workers, pin_memory=False
            )
        )
        for workers in (0, 1)
    ]
    for alone, helped in zip(*batches, strict=True):
        assert alone["name"] == helped["name"]
        assert torch.equal(alone["pixel_values"], helped["pixel_values"])


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path):
    write_folder(tmp_path / "last", lambda folder: (folder / "weights").write_text("old"))

    def fail(folder):
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="The previous checkpoint is intact. Free some space"):
        write_folder(tmp_path / "last", fail)
    assert (tmp_path / "last" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="needs about"):
        write_folder(tmp_path / "last", lambda _: pytest.fail("wrote"), expected_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_between_the_renames_of_a_replacement_the_old_checkpoint_counts(tmp_path):
    (tmp_path / "last.previous").mkdir()
    assert newest(tmp_path / "last") == tmp_path / "last.previous"
    (tmp_path / "last").mkdir()
    assert newest(tmp_path / "last") == tmp_path / "last"


def test_the_log_forgets_steps_that_are_done_again(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.add(step=step, loss=0.5)
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.cut_after(2)
    assert [entry["step"] for entry in read_log(log.path)] == [1, 2]


class PixelClassifier(torch.nn.Module):
    """Each pixel for itself, so that nothing but the loss knows of batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.classifier = torch.nn.Conv2d(3, 4, kernel_size=1)

    def forward(self, pixel_values, labels):
        return SimpleNamespace(loss=F.cross_entropy(self.classifier(pixel_values), labels, ignore_index=255))


def step_in_parts(parts, folder):
    """The weights, the loss and the names after one step over four images, given in equal parts."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(4, 3, 5, 5, generator=generator)
    labels = torch.randint(4, (4, 5, 5), generator=generator)
    labels[0, 1:] = labels[1] = 255  # 5 and no labeled pixels beside twice 25
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    model = PixelClassifier()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.param_groups[0]["initial_lr"] = 1.0
    training = loop.Training(
        accelerator, model, optimizer, folder, count=lambda batch: float((batch["labels"] != 255).sum())
    )
    batches = [
        {"pixel_values": some, "labels": some_labels, "name": ["a"] * len(some)}
        for some, some_labels in zip(pixels.chunk(parts), labels.chunk(parts), strict=True)
    ]
    schedule = loop.Schedule(steps=1, warmup_steps=0, shape="constant", accumulation=parts)
    loss, names = loop.optimizer_step(training, batches, schedule)
    return model.classifier.weight.detach(), loss, names


def test_accumulated_parts_take_the_step_of_the_whole_batch_however_many_pixels_they_ignore(tmp_path):
    weights, loss, names = step_in_parts(1, tmp_path)
    accumulated_weights, accumulated_loss, accumulated_names = step_in_parts(2, tmp_path)
    torch.testing.assert_close(accumulated_weights, weights)
    torch.testing.assert_close(accumulated_loss, loss)
    assert len(accumulated_names) == len(names) == 4


def test_epochs_are_counted_in_images_of_all_parts_of_a_step():
    arguments = SegmentationArguments(epochs=3, batch_size=2, accumulation=2)
    assert new_schedule(arguments, num_images=10, num_processes=1).steps == 8  # 30 images by 4, rounded up


@each(
    ("setting", "complaint"),
    [
        ("reduction_ratio=0", "reduction_ratio is 0, but must be a whole number from 1"),
        ("window_size=abc", "window_size is 'abc', but must be a whole number from 1"),
        ("depths=[2,2", r"depths is '\[2,2', but must be a list"),
        ("initializer_range=nan", "initializer_range is 'nan'"),
        ("decoder=" + "[" * 9999, "decoder"),
    ],
)
def test_a_wrong_value_of_the_configuration_is_reported_in_one_line(data, tmp_path, setting, complaint):
    with pytest.raises(SystemExit, match=rf"^contextseg-train: .*{complaint}.*$"):
        main([*run_options(data, tmp_path / "run"), "--set", setting])


def test_rotation_is_one_of_the_augmentations_and_off_with_them():
    options = {"train": "a", "output": "b", "rotation": 30.0}
    drawn = [
        new_augmentation(
            SegmentationArguments(**options, augmentation=on),
            SegmentationImageProcessor(),
            GlamSwinConfig(),
            seed=0,
        ).rotation
        for on in (True, False)
    ]
    assert drawn == [30.0, 0.0]
