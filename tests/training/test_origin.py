"""Where a run came from: a command line that starts it anew, and names that the Hub knows."""

from cases import each

from contextseg.training.options import train_arguments, train_parser
from contextseg.training.origin import origin, public_data, public_model, run_command
from contextseg.training.recipes import recipe_names, with_recipe


def arguments_of(words):
    return train_arguments(with_recipe(train_parser().given(words))[0])


COMMANDS = {
    "plain": ["--train", "data/train", "--output", "runs/a"],
    "switches": ["--train", "a", "--no-horizontal-flip", "--cpu", "--compile", "--steps", "7"],
    "repeated": ["--train", "a", "--set", "embed_dim=8", "--set", "depths=[2, 2]", "--lr-factor", "head=10"],
    "classification": ["--task", "classification", "--train", "a", "--preset", "nano"],
    "crop": ["--task", "classification", "--train", "a", "--crop-size", "192"],
    "recipe": [
        "--recipe",
        "segdeformer_mit_b1_ade20k",
        "--train",
        "a",
        "--set",
        "neck=linear",
        "--batch-size",
        "2",
    ],
    "recipe on weights": [
        "--recipe",
        "segdeformer_mit_b1_ade20k",
        "--init-from",
        "nvidia/mit-b1",
        "--train",
        "a",
    ],
}


@each("words", COMMANDS)
def test_the_command_of_a_run_starts_the_same_run(words):
    program, *command = run_command(arguments_of(words))
    assert program == "contextseg-train"
    assert arguments_of(command) == arguments_of(words)


@each("words", COMMANDS)
def test_the_command_names_only_what_differs_from_the_defaults(words):
    assert sorted(run_command(arguments_of(words))[1:]) == sorted(words)


@each("name", recipe_names())
def test_a_recipe_of_ours_stands_for_all_its_options(name):
    assert run_command(arguments_of(["--recipe", name, "--train", "a"]))[1:] == [
        "--recipe",
        name,
        "--train",
        "a",
    ]


def test_a_recipe_of_the_users_is_written_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 7\nhorizontal-flip: false\nset: [embed_dim=8]")
    command = run_command(arguments_of(["--recipe", str(path), "--train", "a"]))[1:]
    assert sorted(command) == sorted(
        ["--train", "a", "--no-horizontal-flip", "--set", "embed_dim=8", "--steps", "7"]
    )


def test_several_processes_are_started_by_accelerate():
    command = run_command(arguments_of(["--train", "a"]), num_processes=4)
    assert " ".join(command) == "accelerate launch --num_processes 4 -m contextseg.scripts.train --train a"


def test_data_of_the_hub_and_published_data_have_names_and_own_folders_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "cityscapes/leftImg8bit/train").mkdir(parents=True)
    sources = [
        "me/streets:train",
        "me/streets",
        "data/train",
        str(tmp_path / "gone/train"),
        "cityscapes",
        "cityscapes:val",
    ]
    assert [public_data(source) for source in sources] == [
        "me/streets",
        "me/streets",
        None,
        None,
        "cityscapes",
        "cityscapes",
    ]


def test_checkpoints_of_the_hub_have_names_and_folders_none(tmp_path):
    assert public_model("nvidia/mit-b1") == "nvidia/mit-b1"
    assert public_model("resnet50") == "timm/resnet50.a1_in1k"
    assert public_model("timm/deit_base_patch16_224.fb_in1k") == "timm/deit_base_patch16_224.fb_in1k"
    assert [public_model(name) for name in (str(tmp_path), None)] == [None, None]


def test_a_run_is_made_from_its_data_once_and_from_the_checkpoint_that_it_starts_from():
    run = arguments_of(
        [
            "--train",
            "me/streets:train",
            "--val",
            "me/streets:val",
            "--init-from",
            "microsoft/swin-tiny-patch4-window7-224",
        ]
    )
    assert origin(run, 1)["hub_names"] == {
        "datasets": ["me/streets"],
        "base_model": "microsoft/swin-tiny-patch4-window7-224",
    }
