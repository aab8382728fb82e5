"""What goes wrong while a training runs: what it says, what it does without, and that it resumes exactly. See also `test_resume`."""

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from cases import each
from PIL import Image
from safetensors import SafetensorError
from tiny_runs import CLASSES, run_options, write_data
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from contextseg.processing.data.augmentation import JointAugmentation
from contextseg.processing.data.batches import SampleStream, TrainingSamples, collate, training_loader
from contextseg.processing.data.datasets import SegmentationFolder
from contextseg.processing.data.unreadable import (
    UNREADABLE,
    ReadableImages,
    UnreadableImages,
    readable_sample,
)
from contextseg.processing.image_processing_segmentation import SegmentationImageProcessor
from contextseg.processing.image_reading import ImageReadError
from contextseg.scripts.train import main
from contextseg.training.checkpoints import CheckpointError, load_state
from contextseg.training.command_line import is_expected, plain_message
from contextseg.training.loop import Schedule, Training, optimizer_step
from contextseg.training.optim import ModelEma
from contextseg.training.options import SegmentationArguments
from contextseg.training.records import Log, read_json, read_log
from contextseg.training.setup import open_splits
from contextseg.training.state_checks import check_state


class Images:
    """Five samples, of which some cannot be read."""

    def __init__(self, *damaged):
        self.damaged = damaged

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index in self.damaged:
            raise ImageReadError(f"{index} is damaged")
        return {"name": str(index)}


def test_the_next_readable_image_takes_the_place_of_one_that_cannot_be_read():
    assert readable_sample(Images(1), 0) == {"name": "0", UNREADABLE: []}
    stand_in = readable_sample(Images(3, 4), 3)
    assert stand_in == {"name": "0", UNREADABLE: ["3 is damaged", "4 is damaged"]}


def test_when_no_image_can_be_read_there_is_nothing_to_train_on():
    with pytest.raises(ValueError, match="none of the 5 training images can be read.* 2 is damaged"):
        readable_sample(Images(*range(5)), 2)


def test_by_default_an_unreadable_image_is_an_error_when_its_batch_is_used():
    with pytest.raises(ImageReadError, match="1 is damaged"):
        UnreadableImages().check(collate([readable_sample(Images(1), 1)]))


def test_unreadable_images_are_counted_by_what_is_wrong_with_them():
    counted = UnreadableImages(skip=True)
    for _ in range(2):
        counted.check(collate([readable_sample(Images(1, 2), index) for index in (0, 1)]))
    assert counted.times == {"1 is damaged": 2, "2 is damaged": 2}


def test_an_unreadable_image_is_filter_an_evaluation():
    images = ReadableImages(Images(0, 3))
    batches = [collate([images[index] for index in some]) for some in ([0], [1, 2, 3], [4])]
    readable = list(UnreadableImages(skip=True).filter(batches))
    assert readable == [{"name": ["1", "2"]}, {"name": ["4"]}]


@pytest.fixture
def damaged_data(tmp_path):
    """Data whose second training image and first validation image are cut off."""
    data = write_data(tmp_path / "data")
    for part in ("train/images/scene1.png", "val/images/scene0.png"):
        (data / part).write_bytes((data / part).read_bytes()[:60])
    return data


def test_skipping_begins_although_images_of_the_first_look_cannot_be_read(damaged_data, tmp_path, capsys):
    assert main([*run_options(damaged_data, tmp_path / "run"), "--unreadable", "skip"]) == 0
    record = read_json(tmp_path / "run" / "run.json")
    (train, times), (val, once) = sorted(record["unreadable"].items())
    assert ("train/images/scene1.png" in train, "val/images/scene0.png" in val, once) == (True, True, 1)
    assert times in (1, 2)  # 4 steps of 2 of 5 images
    assert {"step": 4, UNREADABLE: times + 1} in read_log(tmp_path / "run" / "log.jsonl")
    assert "2 images could not be read and were skipped" in capsys.readouterr().out


def test_without_skipping_the_first_look_refuses_them(damaged_data, tmp_path):
    with pytest.raises(SystemExit, match=r"1 unreadable: .*scene1\.png"):
        main(run_options(damaged_data, tmp_path / "run"))


def test_the_message_of_a_worker_comes_without_its_traceback():
    error = ImageReadError(
        "Caught ImageReadError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "fetch.py", line 54, in fetch\nValueError: bad magic\n\nThe above exception was the direct cause\n'
        "contextseg.processing.image_reading.ImageReadError: 'a.png' cannot be decoded: ValueError: bad magic. Copy it again.\n"
    )
    assert plain_message(error) == "'a.png' cannot be decoded: ValueError: bad magic. Copy it again."


def test_a_full_disk_is_reported_with_advice(tmp_path):
    full = tmp_path / "log.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        Log(full).add(step=1, loss=0.5)
    assert "Free some space, then run the command again" in plain_message(caught.value)


def test_a_folder_without_permission_is_named_in_words(tmp_path):
    error = PermissionError(13, "Permission denied", str(tmp_path))
    assert plain_message(error).startswith(f"permission denied for '{tmp_path}'. Change its permissions")


def test_weights_that_cannot_be_written_are_reported_with_advice():
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert is_expected(error)
    assert "Free some space, then run the command again" in plain_message(error)
    assert not is_expected(SafetensorError("a fault of ours"))


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    """A run with a checkpoint."""
    output = tmp_path_factory.mktemp("runs") / "stored"
    main([*run_options(data, output), "--steps", "1"])
    return output


def cut_off(state):
    return state[: len(state) // 2]


def flip_a_bit(state):
    middle = len(state) // 2  # among the weights
    return state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :]


def flip_names(state):
    return state.replace(b"training_state/", b"training_state\xff")


@each("damage", [cut_off, flip_a_bit, flip_names, lambda _: b""])
def test_a_damaged_state_of_training_is_never_resumed_from(damage, stored, tmp_path):
    run = shutil.copytree(stored, tmp_path / "run")
    state = run / "last" / "training_state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(
        SystemExit, match="training_state.pt is damaged .* Start a new run with --init-from .*best"
    ):
        main(["--output", str(run), "--resume"])


def without_a_weight(state):
    del state["model"]["classifier.weight"]


def with_another_shape(state):
    state["model"]["classifier.weight"] = torch.ones(1)


def without_an_average(state):
    del state["optimizer"]["state"]["classifier.weight"]["exp_avg"]


def with_value(value, name):
    return lambda state: state["model"][name].fill_(value)


def with_another_type(state):
    state["model"]["classifier.weight"] = state["model"]["classifier.weight"].int()


def with_an_average_of(value):
    return lambda state: state["optimizer"]["state"]["classifier.weight"].update(exp_avg=torch.tensor(value))


def with_progress(**changes):
    return lambda state: state["progress"].update(changes)


REFUSED = {
    "it lacks a weight": (without_a_weight, "lacks the weight classifier.weight"),
    "a weight of another shape": (
        with_another_shape,
        "another shape or type of the weight classifier.weight",
    ),
    "a weight of another type": (with_another_type, "another shape or type of the weight classifier.weight"),
    "NaN": (with_value(torch.nan, "classifier.bias"), "values of classifier.bias that are not finite"),
    "infinity": (with_value(torch.inf, "classifier.bias"), "values of classifier.bias that are not finite"),
    "an average that is NaN": (with_an_average_of(torch.nan), "values of classifier.weight .exp_avg"),
    "an average of another shape": (with_an_average_of([1.0]), "another shape of exp_avg"),
    "no scores": (with_progress(scores=None), "damaged scores"),
    "a list of scores": (with_progress(best=[1]), "damaged scores"),
    "scores of no step": (with_progress(best={"mean_iou": 0.5}), "damaged scores"),
    "scores that are text": (with_progress(scores={"step": 1, "mean_iou": "x"}), "damaged scores"),
    "it lacks an average": (without_an_average, "lacks exp_avg of the optimizer for classifier.weight"),
    "it lacks the progress": (lambda state: state.pop("progress"), "lacks the progress"),
    "a negative step": (with_progress(step=-1), "claims step -1 of a run of 1 steps"),
    "a step beyond the end": (with_progress(step=10**9), "claims step 1000000000"),
    "a step that is not a number": (with_progress(step=float("nan")), "claims step nan"),
    "too many evaluations": (
        with_progress(evaluations_since_best=5),
        "claims 5 evaluations without a better score",
    ),
    "a negative time": (with_progress(seconds=-1.0), "a training of -1.0 seconds"),
}


@pytest.fixture(scope="module")
def stored_model(stored):
    return AutoModelForSemanticSegmentation.from_pretrained(stored / "last")


@each(("change", "message"), REFUSED)
def test_a_state_that_does_not_fit_the_run_is_refused(change, message, stored, stored_model):
    state = load_state(stored / "last")
    check_state(state, stored_model, 1, stored / "state.pt")
    change(state)
    with pytest.raises(CheckpointError, match=f"state.pt does not fit this run: it .*{message}"):
        check_state(state, stored_model, 1, stored / "state.pt")


def test_a_run_does_not_resume_from_a_step_after_its_end(stored, tmp_path):
    run = shutil.copytree(stored, tmp_path / "run")
    state = load_state(run / "last")
    state["progress"]["step"] = 2
    torch.save(state, run / "last" / "training_state.pt")
    with pytest.raises(SystemExit, match="claims step 2 of a run of 1 steps"):
        main(["--output", str(run), "--resume"])


RECORDS = {
    "empty": ("", "run.json is damaged: it is empty"),
    "a list": ("[]", "run.json is damaged"),
    "no arguments": ("{}", "run.json lacks the arguments"),
    "an unknown task": ('{"arguments": {"task": ["a"]}, "processes": 1}', "run.json lacks the arguments"),
    "a wrong number": (
        '{"arguments": {"task": "segmentation", "steps": "x"}, "processes": 1}',
        "run.json is damaged: --steps is 'x'",
    ),
}


@each(("text", "message"), RECORDS)
def test_a_damaged_record_is_never_resumed_from(text, message, stored, tmp_path):
    run = shutil.copytree(stored, tmp_path / "run")
    (run / "run.json").write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["--output", str(run), "--resume"])


def test_a_damaged_log_loses_its_damaged_lines_only(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00\xfe\n[1]\n{"step": "x"}\n{"step": 2}\n{"step": 3}\n{"st')
    Log(path).cut_after(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert "log.jsonl: 4 damaged lines are left out" in caplog.text


def test_an_older_checkpoint_beside_a_damaged_one_is_pointed_to(stored, tmp_path):
    run = shutil.copytree(stored, tmp_path / "run")
    shutil.copytree(run / "last", run / "last.previous")
    (run / "last" / "training_state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="rename .*last.previous to last, then continue with --resume"):
        load_state(run / "last")


def test_a_class_that_never_occurs_is_named_and_filter_the_means(tmp_path, caplog):
    data = write_data(tmp_path / "data", classes=[*CLASSES, "river", "snow"])
    main([*run_options(data, tmp_path / "run"), "--steps", "4", "--eval-interval", "2"])
    scores = read_json(tmp_path / "run" / "run.json")["scores"]
    assert [row["accuracy"] is None for row in scores["per_class"]] == [False] * 3 + [True] * 2
    assert 0 <= scores["mean_accuracy"] <= 1
    warnings = [record.getMessage() for record in caplog.records if "contains none" in record.getMessage()]
    assert warnings == [f"{data}/val contains none of 2 classes: river, snow"]


def test_validation_without_a_labeled_pixel_names_no_best_model(data, tmp_path):
    blank = shutil.copytree(data, tmp_path / "data")
    for mask in (blank / "val" / "masks").iterdir():
        Image.fromarray(np.full((21, 35), 255, np.uint8)).save(mask)
    (blank / "classes.json").write_text(
        json.dumps({"classes": CLASSES, "label_map": {"0": 0, "1": 1, "2": 2, "255": "ignore"}})
    )
    for name in range(2, 40):  # more than the first look reads, which would find it
        for part, suffix in (("images", "png"), ("masks", "png")):
            shutil.copy(
                blank / "val" / part / f"scene0.{suffix}", blank / "val" / part / f"scene{name}.{suffix}"
            )
    main([*run_options(blank, tmp_path / "run"), "--steps", "1"])
    assert read_json(tmp_path / "run" / "run.json")["best"] == {}
    assert not (tmp_path / "run" / "best").exists()


def test_a_validation_set_without_images_is_refused():
    task = SimpleNamespace(
        open=lambda split: [] if split == "val" else ["a sample"],
        arguments=SegmentationArguments(train="me/data:train", val="me/data:val"),
    )
    with pytest.raises(ValueError, match="me/data:val has no images to validate on"):
        open_splits(task)


@each(("workers", "world"), [(0, 1), (3, 1), (0, 2), (1, 3)])
def test_samples_depend_on_seed_epoch_and_index_alone(workers, world, data):
    """Not on workers, processes, or what was drawn from the global generators."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(10 * workers + world)
    augmentation = JointAugmentation((16, 16), seed=7)
    samples = TrainingSamples(SegmentationFolder(data / "train"), augmentation, SegmentationImageProcessor())
    found = {}
    for rank in range(world):
        stream = SampleStream(5, 6 // world, seed=7, start=0, stop=2, rank=rank, world=world)
        batches = training_loader(samples, stream, workers=workers, pin_memory=False)
        for keys, batch in zip(stream, batches, strict=True):
            found |= dict(zip(keys, batch["pixel_values"], strict=True))
    (all_keys,) = SampleStream(5, 12, seed=7, start=0, stop=1)
    assert found.keys() == set(all_keys)
    assert all(torch.equal(found[key], samples[key]["pixel_values"]) for key in found)


class Line(nn.Module):
    """The loss is its one weight times a number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, slope):
        return SimpleNamespace(loss=(self.weight * slope).sum())


def half_precision_training(tmp_path, scale):
    """With a loss scale, but in float32: fp16 itself needs a GPU."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    model = Line()
    model, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    )
    optimizer.param_groups[0]["initial_lr"] = 0.1
    return Training(accelerator, model, optimizer, tmp_path, count=lambda _: 1.0)


def test_the_loss_scale_of_fp16_is_saved_and_restored(tmp_path):
    state = half_precision_training(tmp_path, 8.0).state()
    resumed = half_precision_training(tmp_path, 2.0)
    resumed.restore(state)
    assert resumed.accelerator.scaler.get_scale() == 8.0


def test_a_step_that_fp16_skips_leaves_weights_and_average_alone(tmp_path):
    training = half_precision_training(tmp_path, 2.0**100)
    training.average = ModelEma(training.plain_model, decay=0.9)
    schedule = Schedule(steps=2, warmup_steps=0, shape="constant")
    weights = []
    for slope in (2.0**100, 1.0):  # the gradient of the first overflows
        optimizer_step(training, [{"slope": torch.tensor([slope]), "name": ["a"]}], schedule)
        weights.append((training.plain_model.weight.item(), training.average.steps))
    assert weights == [(1.0, 0), (pytest.approx(0.9), 1)]
