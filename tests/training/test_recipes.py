import fnmatch
import json
import re
from itertools import pairwise

import pytest
import torch
import yaml
from cases import each, slow_but
from coco_shapes import FEW
from tiny_runs import RECIPES_OF_EACH_KIND

from contextseg.configuration.configuration_maformer import MaformerConfig
from contextseg.modeling.modeling_maformer import (
    MaformerForImageClassification,
    MaformerForSemanticSegmentation,
)
from contextseg.scripts.train import main
from contextseg.training.models import SEGMENTER, describe, describe_with_data
from contextseg.training.optim import learning_rate_factor
from contextseg.training.optimization_options import LEARNING_RATE
from contextseg.training.option_texts import parse_overrides
from contextseg.training.options import train_arguments, train_parser
from contextseg.training.recipes import (
    FOLDER,
    STARTING_POINTS,
    read_recipe,
    recipe_names,
    with_recipe,
)
from contextseg.training.records import read_json, write_json
from contextseg.training.starting_points import configuration
from contextseg.training.tasks import task_for

# The first blocks of the paper's models, at few pixels: what a recipe builds, in a second.
SMALL = {
    "maformer": ["--set", "hidden_sizes=[8,16]", "--set", "depths=[1,1]", "--set", "num_heads=[2,4]"],
    "glam_swin": ["--set", "embed_dim=8", "--set", "depths=[1,1]", "--set", "num_heads=[1,2]"],
    "segdeformer": [
        *("--set", "decoder_hidden_size=8", "--set", "auxiliary_hidden_size=8", "--set"),
        'backbone_config={"model_type": "glam_swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}',
    ],
    "relay": ["--set", "embed_dim=8", "--set", "depths=[1]", "--set", "num_heads=[2]"],
    "cswin": [
        *("--set", "hidden_sizes=[8,16]", "--set", "depths=[1,1]", "--set", "num_heads=[2,2]"),
        *("--set", "stripe_widths=[1,0]"),
    ],
    "nnformer": [
        *("--set", "embed_dim=8", "--set", "num_heads=[1,1,1,1]", "--set", "decoder_num_heads=[1,1,1]"),
        *("--set", "window_size=[2,2,2,2]"),
    ],
    "mask_rcnn": [
        *("--set", f"detector_options={FEW}", "--set"),
        'backbone_config={"model_type": "maformer", "hidden_sizes": [8,16], "depths": [1,1], "num_heads": [2,4]}',
    ],
}
DRY_RUN = ["--dry-run", "--cpu", "--precision", "no"]
OVERRIDES = [*DRY_RUN, "--crop-size", "32"]
DETECTION_OVERRIDES = [*DRY_RUN, "--shorter-side", "32", "--longer-side", "64"]


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@each("name", recipe_names())
def test_every_recipe_sets_options_of_the_command_line_and_names_its_source(name):
    given, recipe = with_recipe({"recipe": name})
    assert {option.replace("-", "_") for option in recipe.options} <= given.keys()
    assert train_arguments(given).recipe == name
    assert recipe.paper["source"]
    assert not {"train", "val", "output"} & given.keys()


@pytest.mark.parametrize("name", slow_but(recipe_names(), *RECIPES_OF_EACH_KIND))
def test_every_recipe_can_be_tried_without_data(name, capsys):
    options = read_recipe(name).options
    overrides = DETECTION_OVERRIDES if options.get("task") == "detection" else OVERRIDES
    assert main(["--recipe", name, *overrides, *SMALL[options.get("model", "glam_swin")]]) == 0
    printed = capsys.readouterr().out
    assert f"recipe {name}: " in printed
    assert "memory of a process: " in printed


def test_the_recipes_of_maformer_are_those_of_the_paper():
    printed = {"small": (1.6e-3, 0.1, 83.7), "base": (1.6e-3, 0.3, 85.0), "large": (1.2e-3, 0.4, 85.9)}
    for preset, (rate, drop_path, score) in printed.items():
        given, recipe = with_recipe({"recipe": f"maformer_{preset}_imagenet1k"})
        assert (given["preset"], given["learning_rate"], given["schedule"]) == (preset, rate, "cosine")
        assert given["batch_size"] * given["accumulation"] == 1024
        assert f"drop_path_rate={drop_path}" in given["set"]
        assert (given["weight_decay"], given["label_smoothing"], recipe.paper["top-1"]) == (0.05, 0.1, score)
        assert "token_label_loss_weight=1.0" in given["set"]


# The mIoU that the papers print. One row is in two of them: Swin-UPerNet-S on ADE20K.
PRINTED = {
    "glam_swin_upernet_{}_ade20k": {"tiny": 44.16, "small": 47.75, "base": 48.44},
    "swin_upernet_{}_ade20k": {"tiny": 43.69, "small": 47.72, "base": 47.99},
    "glam_swin_unet_{}_ade20k": {"tiny": 44.19, "small": 47.90, "base": 49.10},
    "swin_unet_{}_ade20k": {"tiny": 42.75, "small": 47.49, "base": 47.85},
    "swin_unet_nlu_{}_ade20k": {"tiny": 43.20},
    "glam_swin_upernet_{}_cityscapes": {"tiny": 78.64, "base": 81.47},
    "swin_upernet_{}_cityscapes": {"tiny": 78.24, "base": 80.79},
    "glam_swin_unet_{}_cityscapes": {"tiny": 78.29},
    "swin_unet_{}_cityscapes": {"tiny": 77.43},
    "segdeformer_{}_ade20k": {
        **{"mit_b1": 44.05, "mit_b2": 47.49, "mit_b2_efficient": 47.09, "mit_b5": 50.32},
        **{"deit_small": 43.93, "deit_small_upernet": 44.10, "deit_base_upernet": 46.07},
        **{"swin_small": 48.16, "swin_small_upernet": 48.94, "swin_small_upernet_efficient": 48.42},
        **{"swin_large_upernet": 52.77, "swin_large_upernet_640": 53.12},
    },
    "segdeformer_{}_coco_stuff": {"mit_b5": 47.51, "deit_base_upernet": 46.02, "swin_large_upernet": 49.51},
    "segdeformer_{}_cityscapes": {
        **{"mit_b5_efficient": 82.46, "deit_base_upernet": 80.10, "swin_large_upernet_efficient": 83.52},
    },
    "segformer_{}_ade20k": {
        **{"mit_b1": 40.97, "mit_b2": 45.58, "mit_b5": 49.13},
        **{"mit_b2_depth_8": 45.68, "mit_b2_depth_8_width_512": 46.08},
    },
    "segformer_{}_coco_stuff": {"mit_b5": 46.71},
    "segformer_{}_cityscapes": {"mit_b5": 82.07},
    "upernet_{}_ade20k": {
        **{"deit_small": 42.87, "deit_base": 45.36},
        **{"swin_large": 51.61, "swin_large_640": 52.09},
    },
    "upernet_{}_coco_stuff": {"deit_base": 45.68, "swin_large": 49.05},
    "upernet_{}_cityscapes": {"deit_base": 79.09, "swin_large": 82.80},
    "semantic_fpn_{}_ade20k": {"swin_large_640": 50.85},
    "cswin_{}_upernet_ade20k": {"tiny": 49.3, "small": 50.4, "base": 51.1},
    "maformer_{}_semantic_fpn_ade20k": {"small": 47.9, "base": 49.8},
    "maformer_{}_upernet_ade20k": {"small": 48.3, "base": 51.1},
    "relay_{}_archaeoscape": {"vit_small": 46.7, "swinv2_small": 57.8},
    "relay_{}_urur": {"vit_small": 40.4, "swinv2_small": 46.4},
    "relay_{}_gleason": {"vit_small": 49.1, "swinv2_small": 55.5},
    "relay_{}_cityscapes": {"vit_small": 61.0, "swinv2_small": 75.1},
    "glam_swin_unet_{}_no_gmsa_ade20k": {"base": 47.90},
    "glam_swin_upernet_{}_no_gmsa_ade20k": {"base": 47.95},
}
VOLUMES = {  # the Dice that the papers print, where it is known here
    "nnformer_synapse": 86.57,
    "nnformer_acdc": None,
    "nnformer_tumor": None,
    "nnformer_2021_synapse": 87.40,
    "glam_nnformer_synapse": 88.60,
}
SEGMENTATION = sorted(
    name for name in recipe_names() if "task" not in read_recipe(name).options and name not in VOLUMES
)
RELAY = [name for name in SEGMENTATION if name.startswith("relay")]
OF_IMAGES = [name for name in SEGMENTATION if name not in RELAY]  # as in mmsegmentation


def test_every_printed_row_has_its_recipe_and_score():
    printed = {rows.format(size): score for rows, sizes in PRINTED.items() for size, score in sizes.items()}
    assert {name: read_recipe(name).paper["mIoU"] for name in SEGMENTATION} == printed


@each("name", OF_IMAGES)
def test_every_segmentation_recipe_takes_the_papers_steps_batch_and_rate(name):
    given, recipe = with_recipe({"recipe": name})
    arguments = train_arguments(given)
    images = 8 if name.startswith(("segdeformer", "segformer", "upernet")) and "cityscapes" in name else 16
    assert arguments.batch_size * arguments.accumulation == images
    rates = {"maformer": 2e-4, "semantic": 1e-4} if "semantic_fpn" in name else {}
    rate = rates.get(name.partition("_")[0])
    found = arguments.learning_rate or LEARNING_RATE
    assert (arguments.steps, found) == ((80000, rate) if rate else (160000, 6e-5))
    assert arguments.schedule == ("cosine" if rate == 2e-4 else "poly")
    assert (arguments.weight_decay, arguments.weight_decay_of) == (1e-4 if rate else 0.01, "all-but-norms")
    assert arguments.head_lr_factor == (10 if name.startswith(("segdeformer", "segformer")) else 1)
    assert (
        recipe.paper["classes"] == {"ADE20K": 150, "Cityscapes": 19, "COCO-Stuff": 171}[recipe.paper["data"]]
    )


@each("name", OF_IMAGES)
def test_every_segmentation_recipe_describes_a_model_at_its_full_size(name):
    given, _ = with_recipe({"recipe": name})
    config = configuration(SEGMENTER, given["model"], given["preset"], parse_overrides(given["set"]))
    assert config.decoder == ("unet" if "unet" in name else config.decoder)
    assert config.loss_reduction == "all"
    width = {"semantic_fpn": 128, "semantic_branch": 256, "upernet": 512}.get(
        config.decoder, 256 if "mit" in name and "512" not in name else 512
    )
    width = config.embed_dim if config.decoder == "unet" else width
    assert config.decoder_hidden_size == width
    has_auxiliary_head = "upernet" in name or "deit" in name or "segdeformer_swin" in name
    assert config.use_auxiliary_head == has_auxiliary_head


@each("name", OF_IMAGES)
def test_every_segmentation_recipe_resizes_and_evaluates_as_its_source_does(name):
    given, recipe = with_recipe({"recipe": name})
    arguments, data = train_arguments(given), recipe.paper["data"]
    of_context_mining = name.startswith(("segdeformer", "segformer", "upernet"))
    base = {"ADE20K": "2560x640" if "640" in name else "2048x512", "COCO-Stuff": "2048x512"}
    assert arguments.base_size == base.get(data, None if of_context_mining else "2049x1025")
    windows = {"Cityscapes": ("1024", 0.25), "COCO-Stuff": ("512", 0.334)}
    asked = (arguments.window, arguments.overlap)
    assert asked == (windows.get(data, (None, 0.5)) if of_context_mining else (None, 0.5))


@each("name", RELAY)
def test_recipes_of_relay_tokens_train_and_tile_as_their_authors_do(name):
    arguments = train_arguments(with_recipe({"recipe": name})[0])
    assert (arguments.learning_rate, arguments.weight_decay, arguments.batch_size) == (1e-3, 0.0, 64)
    assert (arguments.crop_size, arguments.window, arguments.context_sampling) == ("256", "256", "point")
    shares = arguments.resize_share, arguments.rotation_share, arguments.rotation
    assert (*shares, arguments.horizontal_flip) == (0.5, 0.5, 90, False)
    assert arguments.epochs == (30 if "urur" in name else 50)
    overlaps = 0.5 if "cityscapes" in name or "archaeoscape" in name else 0
    assert (arguments.overlap, arguments.early_stopping) == (overlaps, 10)


@each("name", list(VOLUMES))
def test_recipes_of_volumes_train_as_nnformers_authors_do(name):
    given, recipe = with_recipe({"recipe": name})
    arguments = train_arguments(given)
    assert recipe.paper.get("Dice") == VOLUMES[name]
    assert (arguments.optimizer, arguments.momentum, arguments.learning_rate) == ("sgd", 0.99, 0.01)
    assert (arguments.schedule, arguments.poly_power, arguments.warmup_steps) == ("poly", 0.9, 0)
    assert (arguments.weight_decay, arguments.clip_norm, arguments.steps) == (3e-5, 12, 1000 * 250)
    assert arguments.weight_decay_of == "all"
    config = configuration(SEGMENTER, given["model"], given["preset"], parse_overrides(given.get("set", [])))
    assert arguments.crop_size == "x".join(map(str, config.crop_size))
    assert (config.num_global_tokens, config.variant) == (
        int("glam" in name),
        "2021" if "glam" in name or "2021" in name else "2022",
    )


def test_the_table_of_printed_rows_names_every_recipe_and_no_other():
    page = (FOLDER.parents[1] / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_*]+)`", page.split("## Which printed rows")[1].split("## All")[0]))
    matches = {pattern: fnmatch.filter(recipe_names(), pattern) for pattern in named}
    assert [pattern for pattern, found in matches.items() if not found] == []
    assert {name for found in matches.values() for name in found} == set(recipe_names())


@each("name", list(VOLUMES))
def test_without_data_the_plan_of_a_recipe_is_its_network(name):
    task = task_for(train_arguments({**with_recipe({"recipe": name})[0], "dry_run": True}))
    crops, network = task.plan(noise := task.generated(4), None)
    assert crops == f"crops: {task.arguments.crop_size} voxels, {4 if 'acdc' in name else 2} in a batch"
    assert f"patches of {'x'.join(map(str, task.described.patch_size))} voxels" in network
    assert not task.model_fields(noise).keys() & {"patch_size", "downsample_strides", "window_size"}


def test_a_given_starting_point_takes_the_place_of_the_recipes():
    for option in STARTING_POINTS:
        given, _ = with_recipe({"recipe": "segdeformer_mit_b1_ade20k", option: "this"})
        assert {name: given[name] for name in STARTING_POINTS & given.keys()} == {option: "this"}


def test_one_class_and_one_image_are_in_the_singular():
    model = torch.nn.Linear(2, 3)
    assert describe_with_data(model, 1, 1) == "Linear, 0.0 M parameters, 1 class, 1 image"
    assert describe_with_data(model, 2, 10) == "Linear, 0.0 M parameters, 2 classes, 10 images"


def test_a_segmentation_recipe_of_maformer_starts_from_its_classifier(tmp_path, capsys):
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_heads": [2, 4]}
    classifier = MaformerForImageClassification(MaformerConfig(**sizes, use_token_labels=True, num_labels=5))
    classifier.save_pretrained(tmp_path)
    recipe = ["--recipe", "maformer_small_upernet_ade20k", "--init-from", str(tmp_path)]
    assert main([*recipe, *OVERRIDES, "--set", "auxiliary_hidden_size=8"]) == 0
    fresh = MaformerConfig(**sizes, decoder="upernet", auxiliary_hidden_size=8, num_labels=150)
    with torch.device("meta"):
        described = describe(MaformerForSemanticSegmentation(fresh))
    assert f"{described}, 150 classes" in capsys.readouterr().out


def test_a_dry_run_prints_steps_rates_and_memory_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "epochs: 3\nbatch-size: 4\nlearning-rate: 1e-2\npaper: {images: 40, classes: 7}")
    assert main(["--recipe", path, *OVERRIDES, *SMALL["glam_swin"], "--preset", "nano"]) == 0
    printed = capsys.readouterr().out
    assert "7 classes" in printed
    assert "40 images; a batch of two samples has pixel_values (2, 3, 32, 32), labels (2, 32, 32)" in printed
    assert "30 steps (3.0 epochs) of 4 images (4 x 1 accumulated x 1 processes)" in printed
    assert "0.01 after 3 steps" in printed
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_dry_run_counts_the_images_that_are_there(tmp_path, capsys):
    from tiny_runs import TINY_MODEL, write_data

    data = write_data(tmp_path / "data")
    main(["--train", f"{data}/train", *OVERRIDES, *TINY_MODEL, "--batch-size", "2", "--epochs", "4"])
    printed = capsys.readouterr().out
    assert "3 classes" in printed
    assert "5 images" in printed
    assert "10 steps (4.0 epochs)" in printed


def test_a_dry_run_finds_out_that_a_model_cannot_be_built():
    with pytest.raises(SystemExit, match="has no option 'window_sizee', did you mean 'window_size'"):
        main([*OVERRIDES, "--set", "window_sizee=4"])


def test_given_options_win_over_the_recipe_and_settings_add_up(tmp_path):
    path = write(
        tmp_path, 'learning-rate: 1e-4\nepochs: 3\naugmentation: false\nset: [embed_dim=8, "depths=[1]"]'
    )
    given = train_parser().given(["--recipe", path, "--epochs", "5", "--set", "embed_dim=4"])
    options, recipe = with_recipe(given)
    assert options["learning_rate"] == 1e-4  # which YAML takes for text
    assert options["epochs"] == 5
    assert options["augmentation"] is False
    assert options["set"] == ["embed_dim=8", "depths=[1]", "embed_dim=4"]
    assert recipe.paper == {}


def test_a_run_with_a_recipe_is_resumed_without_naming_it(tmp_path):
    from tiny_runs import TINY_MODEL, run_options, write_data

    data = write_data(tmp_path / "data")
    path = write(tmp_path, "weight-decay: 0.02\npaper: {source: here}")
    assert main([*run_options(data, tmp_path / "run", TINY_MODEL), "--recipe", path]) == 0
    assert main(["--output", str(tmp_path / "run"), "--resume"]) == 0
    assert main(["--output", str(tmp_path / "run"), "--resume", "--recipe", path]) == 0


def test_the_record_of_a_run_starts_it_again(tmp_path):
    from tiny_runs import TINY_MODEL, run_options, write_data

    data, first = write_data(tmp_path / "data"), tmp_path / "first run"
    changes = ["--steps", "2", "--no-augmentation", "--weight-decay", "0.02", "--loss", "dice"]
    assert main([*run_options(data, first, TINY_MODEL), *changes]) == 0
    record = read_json(first / "run.json")
    record["arguments"]["push"] = "me/streets"
    write_json(first / "run.json", record)
    assert main(["--config", str(first / "run.json"), "--output", str(tmp_path / "second")]) == 0
    again = ["--config", str(first), "--output", str(tmp_path / "third"), "--steps", "1", "--seed", "5"]
    assert main(again) == 0
    one, two, three = (read_json(tmp_path / run / "run.json") for run in ("first run", "second", "third"))
    assert one["scores"] == two["scores"]
    assert one["best"]["step"] == 2
    differing = {name for name, value in one["arguments"].items() if value != two["arguments"][name]}
    assert differing == {"output", "recipe", "push"}
    assert (three["steps_done"], three["seed"]) == (1, 5)
    assert "--recipe" not in two["command"]


def test_a_run_is_started_again_into_a_new_folder_only(tmp_path):
    record = {"arguments": {"task": "segmentation", "train": "data", "output": "old", "batch_size": 3}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="--output is missing"):
        main(["--config", str(tmp_path / "run.json")])


@each("content", ["", "{", "[]", "[" * 100_000, "{}", '{"arguments": {"weights": "a"}}'])
def test_a_file_that_is_no_record_of_a_run_is_refused(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit, match="is not the run.json of a run of contextseg-train"):
        main(["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "new")])


BOMB = ["a: &a [x, x, x, x, x, x, x, x, x]"]
BOMB += [f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]" for last, name in pairwise("abcdefghi")]
FAULTS = {
    "unknown option": ("learning-rat: 1", 2, "no option --learning-rat, did you mean --learning-rate?"),
    "no number": ("epochs: many", 2, "argument --epochs: invalid float value: 'many'"),
    "no YAML": ("a: [", None, "is not valid YAML"),
    "no options": ("just text", None, "has no options"),
    "no value": ("epochs:", None, "'epochs' in the recipe .* is neither a value nor a list"),
    "an alias bomb": ("\n".join(BOMB), None, "has the alias .* Write the values out"),
    "a key twice": ("epochs: 3\nsteps: 4\nepochs: 5", None, "has 'epochs' twice"),
    "a number for a name": ("3: 4", None, "3 in the recipe .* is not an option that a recipe can set"),
    "help": ("help: true", None, "'help' in the recipe .* is not an option that a recipe can set"),
    "another recipe": ("recipe: cswin", None, "'recipe' in the recipe .* is not an option"),
    "two spellings": ("weight-decay: 1\nweight_decay: 2", None, "has 'weight-decay' and 'weight_decay'"),
    "on and off": ("augmentation: true\nno-augmentation: true", None, "'augmentation' and 'no-augmentation'"),
    "a nested list": ("set: [[a]]", None, "'set' in the recipe .* is neither a value nor a list"),
    "a date": ("epochs: 2020-01-01", None, "'epochs' in the recipe .* is neither a value nor a list"),
    "deeply nested": ("a: " + "[" * 5000, None, "is not valid YAML"),
    "binary": ("\x00\x01", None, "is not valid YAML"),
    "code": ("a: !!python/object/apply:os.system [ls]", None, "is not valid YAML"),
    "too large": ("# comment\n" * 200_000, None, "has 2000000 bytes"),
    "out of range": ("epochs: 0", 2, "--epochs is 0.0, but must be a number above 0"),
    "a switch for a number": ("epochs: true", 2, "--epochs: expected one argument"),
    "two values for one option": ("epochs: [1, 2]", None, "'epochs' in the recipe .* takes a single value"),
    "paper is text": ("paper: table 1", None, "'paper' in the recipe .* is not a mapping"),
}


def test_the_summary_of_a_recipe_has_no_control_characters(tmp_path):
    path = write(tmp_path, 'license: "a\\e[31mb"\npaper: {"top\\e[2J": "\\e]0;title"}')
    assert not set("\x1b\x07") & set(str(read_recipe(path)))


@each(("text", "code", "message"), FAULTS)
def test_a_faulty_recipe_is_explained(text, code, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--recipe", write(tmp_path, text)])
    said = capsys.readouterr().err if code else str(caught.value)
    assert caught.value.code == code or code is None
    assert re.search(message, said)


def test_an_unknown_recipe_is_answered_with_the_nearest_one(tmp_path):
    with pytest.raises(SystemExit, match="did you mean 'maformer_small_imagenet1k'"):
        main(["--recipe", "maformer_smal_imagenet1k"])
    with pytest.raises(SystemExit, match="there is no recipe .*nowhere.yaml"):
        main(["--recipe", str(tmp_path / "nowhere.yaml")])


def test_recipes_are_flat():
    """One line for each option, so that a recipe reads as the command line that it stands for."""
    for path in FOLDER.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {name for name, value in content.items() if isinstance(value, dict)} <= {"paper"}


def test_a_schedule_ends_at_its_floor_and_stays_there():
    def factor(step):
        return learning_rate_factor(
            step, steps=110, warmup_steps=0, schedule="cosine", cooldown_steps=10, floor=0.1
        )

    assert factor(0) == 1.0
    assert factor(50) == pytest.approx(0.55)
    assert [factor(step) for step in (100, 105, 109)] == [0.1] * 3
