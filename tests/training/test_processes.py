"""Training and evaluation in several processes, launched as a user launches them; the CPU's gloo stands in for NCCL."""

import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from coco_shapes import write_shapes
from launched import finished, free_port, launch
from safetensors.torch import load_file
from task_models import save_classifier, save_detector, write_class_folders
from tiny_runs import TINY_MODEL, TINY_RUN, write_data, write_pairs
from torch import nn

from contextseg.scripts.evaluate import main as evaluate
from contextseg.scripts.train import main as train
from contextseg.training.processes import PeerError, explained_loss_of_a_peer
from contextseg.training.records import read_json, read_log

ROOT = Path(__file__).resolve().parents[2]
# No batch norm, whose statistics a CPU cannot synchronise, and no dropout: then two processes do what one does.
MODEL = [
    *("--preset", "nano", "--set", "depths=[2,2]", "--set", "num_heads=[1,2]", "--set", "embed_dim=8"),
    *("--set", "decoder=unet", "--set", "drop_path_rate=0.0"),
]
OPTIONS = ["--steps", "6", "--eval-interval", "3", "--clip-norm", "1", "--ema", "0.9", "--cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five images to train on and three to score, which two processes cannot share evenly."""
    root = write_data(tmp_path_factory.mktemp("data"))
    write_pairs(root / "uneven", 3, size=(21, 35), seed=2)
    return root


def options(data, output, batch_size, changes=OPTIONS):
    run = ["--train", f"{data}/train", "--val", f"{data}/uneven", "--output", str(output)]
    return [*run, *MODEL, *TINY_RUN, "--batch-size", str(batch_size), *changes]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process with the doubled batch."""
    output = tmp_path_factory.mktemp("alone") / "run"
    assert train(options(data, output, 4)) == 0
    return output


def losses(run):
    return [entry["loss"] for entry in read_log(run / "log.jsonl") if "loss" in entry]


def assert_same_training(run, alone):
    """Sums of float32 in another order: losses to 1e-5, weights to 1e-4 of their size, scores of 3 tiny images alike."""
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    ours, theirs = (load_file(folder / "last" / "model.safetensors") for folder in (run, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert read_json(run / "run.json")["scores"]["mean_iou"] == pytest.approx(
        read_json(alone / "run.json")["scores"]["mean_iou"], abs=2e-3
    )


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.processes
def test_two_machines_train_as_one_process_with_the_doubled_batch(data, alone, tmp_path):
    command = ["-m", "contextseg.scripts.train", *options(data, tmp_path / "run", 2)]
    port = free_port()
    machines = [launch("ddp.yaml", command, port=port, node=node) for node in range(2)]
    for machine in machines:
        finished(machine)
    assert_same_training(tmp_path / "run", alone)
    assert files(tmp_path / "run") == files(alone)  # and each line of the log once, see `losses`


@pytest.mark.processes
def test_two_sharded_processes_train_as_one_and_one_continues(data, alone, tmp_path):
    """FSDP2: four steps in two processes, the last two in one."""
    run = tmp_path / "run"
    command = [str(ROOT / "tests" / "train_on_cpus.py"), *options(data, run, 2)]
    stopped = launch("fsdp2.yaml", command, STOP="4")
    stopped.communicate(timeout=120)
    assert read_json(run / "run.json")["steps_done"] == 4
    changed = ["--batch-size", "4"]
    assert train(["--output", str(run), "--resume", *changed]) == 0
    assert_same_training(run, alone)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.processes
def test_two_processes_under_deepspeed_train_as_one_and_resume(data, tmp_path):
    changes = [option for option in OPTIONS if option not in ("--ema", "0.9")]
    train(options(data, tmp_path / "alone", 4, changes))
    run = tmp_path / "run"
    command = [str(ROOT / "tests" / "train_on_cpus.py")]
    stopped = launch(
        "deepspeed_zero2.yaml", [*command, *options(data, run, 2, changes)], STOP="4", DS_ACCELERATOR="cpu"
    )
    stopped.communicate(timeout=120)
    assert read_json(run / "run.json")["steps_done"] == 4
    resume = [*command, "--output", str(run), "--resume"]
    finished(launch("deepspeed_zero2.yaml", resume, DS_ACCELERATOR="cpu"))
    assert_same_training(run, tmp_path / "alone")


@pytest.mark.processes
def test_two_processes_score_the_saved_model_exactly_as_one(data, tmp_path):
    """With batch norm, whose running statistics are each process's own in training."""
    run = tmp_path / "run"
    batch_norm = [*TINY_MODEL, "--set", "drop_path_rate=0.0"]
    place = ["--train", f"{data}/train", "--val", f"{data}/uneven", "--output", str(run), "--cpu"]
    finished(launch("ddp.yaml", ["-m", "contextseg.scripts.train", *place, *batch_norm, *TINY_RUN]))
    command = [str(run), "--data", f"{data}/uneven", "--workers", "0", "--cpu", "--output"]
    evaluate([*command, str(tmp_path / "one")])
    finished(launch("ddp.yaml", ["-m", "contextseg.scripts.evaluate", *command, str(tmp_path / "two")]))
    one, two = (read_json(tmp_path / name / "evaluation.json") for name in ("one", "two"))
    assert one["per_class"] == two["per_class"]
    assert one["mean_iou"] == two["mean_iou"] == read_json(run / "run.json")["scores"]["mean_iou"]


@pytest.mark.processes
def test_when_a_process_is_killed_the_others_stop_and_say_so(data, tmp_path):
    run = tmp_path / "run"
    command = [str(ROOT / "tests" / "train_on_cpus.py"), *options(data, run, 2)]
    process = launch("ddp.yaml", command, DIE="1:5")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "process 0 stops because another process of this run has ended" in output
    assert f"--output {run} --resume" in output
    assert read_json(run / "run.json")["steps_done"] == 3  # the checkpoint before


@pytest.mark.processes
def test_when_a_process_hangs_the_others_stop_after_the_timeout(data, tmp_path):
    run = tmp_path / "run"
    command = [str(ROOT / "tests" / "train_on_cpus.py"), *options(data, run, 2), "--timeout", "0.15"]
    process = launch("ddp.yaml", command, HANG="1:5")
    output, _ = process.communicate(timeout=180)  # the launcher then kills the hanging one
    assert process.returncode != 0
    assert "process 0 stops because another process of this run has ended or does not respond" in output
    assert "Traceback" not in output.partition("contextseg-train: process 0")[0]
    assert read_json(run / "run.json")["steps_done"] == 3  # the checkpoint before


@pytest.mark.processes
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_two_processes_score_other_tasks_as_one_does(task, tmp_path):
    if task == "classification":
        data = write_class_folders(tmp_path / "data", ["ant", "bee", "cat"], count=3)
        (data / "bee" / "1.png").write_text("no image")
        model, code = save_classifier(tmp_path / "model"), 1
    else:
        data, model, code = write_shapes(tmp_path / "data", 3), save_detector(tmp_path / "model"), 0
    command = [str(model), "--data", str(data), "--cpu", "--workers", "0", "--output"]
    assert evaluate([*command, str(tmp_path / "one")]) == code
    process = launch("ddp.yaml", ["-m", "contextseg.scripts.evaluate", *command, str(tmp_path / "two")])
    output, _ = process.communicate(timeout=120)
    assert (process.returncode != 0) == bool(code), output[-4000:]
    one, two = (read_json(tmp_path / name / "evaluation.json") for name in ("one", "two"))
    differing = {name for name in one if one[name] != two[name]}
    assert differing <= {"seconds"}


@pytest.mark.processes
def test_sigterm_to_the_launcher_saves_and_the_run_goes_on(data, tmp_path):
    run = tmp_path / "run"
    command = ["-m", "contextseg.scripts.train", *options(data, run, 2), "--steps", "4000"]
    process = launch("ddp.yaml", command)
    while not (run / "last").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    record = read_json(run / "run.json")
    assert record["status"] == "stopped", output[-4000:]
    assert record["processes"] == 2
    assert f"stopped at step {record['steps_done']} and saved" in output


def test_another_number_of_processes_must_keep_the_images_of_a_step(alone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"resume with 8 images.* started with 4"):
        train(["--output", str(alone), "--resume"])


def test_only_errors_about_peers_are_explained():
    accelerator = type("Two", (), {"num_processes": 2, "process_index": 1})
    with (
        pytest.raises(PeerError, match="process 1 stops because"),
        explained_loss_of_a_peer(accelerator, "Resume."),
    ):
        raise RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="size mismatch"), explained_loss_of_a_peer(accelerator, "Resume."):
        raise RuntimeError("size mismatch")


def test_batch_norm_is_synchronized_on_several_gpus_alone():
    from contextseg.training.processes import with_synchronized_batch_norm

    def converted(processes, device):
        accelerator = type("Fake", (), {"num_processes": processes, "device": torch.device(device)})
        return type(with_synchronized_batch_norm(accelerator, nn.Sequential(nn.BatchNorm2d(2)))[0])

    assert converted(2, "cuda") is nn.SyncBatchNorm
    assert converted(1, "cuda") is converted(2, "cpu") is nn.BatchNorm2d
