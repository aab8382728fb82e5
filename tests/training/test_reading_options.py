"""The options for reading: one group in every command, saved with a run and used after it."""

import json
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from cases import each
from PIL import Image
from tiny_runs import TINY_MODEL, TINY_RUN

from contextseg.processing.image_processing_segmentation import SegmentationImageProcessor
from contextseg.scripts import check, evaluate, finetune, predict, train
from contextseg.training.command_line import joined_pairs
from contextseg.training.option_texts import value_limits
from contextseg.training.reading_options import PixelOptions, ReadingOptions, reading_names
from contextseg.training.segmentation import for_channels
from contextseg.training.stored_reading import reading_for, set_reading

MODEL = SimpleNamespace(config=SimpleNamespace(num_channels=5, id2label={0: "a", 1: "b"}))


@each("command", (check, train, finetune, evaluate, predict))
def test_every_command_has_the_options(command):
    wanted = PixelOptions if command is predict else ReadingOptions
    assert {field.name for field in fields(wanted)} <= {
        action.dest for action in command.new_parser()._actions
    }


@each(
    ("words", "joined"),
    {
        "two numbers": (["--value-range", "0", "4095", "a.png"], ["--value-range=0,4095", "a.png"]),
        "negative": (["--value_range", "-1024", "3071"], ["--value_range=-1024,3071"]),
        "one word": (["--value-range", "-1,1", "7"], ["--value-range=-1,1", "7"]),
        "equals": (["--value-range=0,1", "2"], ["--value-range=0,1", "2"]),
        "nothing": (["--value-range"], ["--value-range"]),
    },
)
def test_a_range_is_two_words_or_one(words, joined):
    assert joined_pairs(words) == joined


@each("text", ("0", "1,0", "0,0", "0,nan", "a,b", "0,1,2", ""))
def test_what_is_no_range_is_answered_in_words(text):
    with pytest.raises(ValueError, match="--value-range"):
        value_limits(text)


def test_only_given_options_are_passed_on():
    options = ReadingOptions(num_channels=4, value_range="-1,1")
    assert options.keywords() == {"num_channels": 4, "value_range": (-1.0, 1.0)}
    assert options.words() == " --value-range=-1,1 --num-channels 4"


def written_run(folder, **arguments):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"arguments": arguments}))
    return str(folder)


def test_a_run_tells_how_its_data_is_read(tmp_path):
    run = written_run(tmp_path / "run", image_column="photo", classes=str(tmp_path / "gone.json"))
    processor = SegmentationImageProcessor(value_range=(0, 4095), label_map={7: 0, 9: 1})
    reading = reading_for(ReadingOptions(value_range="0,9"), f"{run}/best", MODEL, processor)
    assert (reading["image_column"], reading["value_range"], reading["num_channels"]) == ("photo", (0, 9), 5)
    assert (reading["classes"].names, reading["classes"].label_map) == (["a", "b"], {"7": 0, "9": 1})


def test_data_without_class_names_has_those_of_the_model():
    reading = reading_for(ReadingOptions(), "me/model", MODEL, SegmentationImageProcessor())
    assert reading["default_table"].names == ["a", "b"]
    assert "classes" not in reading


def test_other_channels_than_the_models_are_refused():
    with pytest.raises(ValueError, match="--num-channels is 4, but the model takes 5 channels"):
        set_reading(PixelOptions(num_channels=4), MODEL, SegmentationImageProcessor())


def test_further_channels_are_normalized_by_the_mean_of_the_others():
    assert for_channels((1, 2, 3), 5) == (1, 2, 3, 2, 2)
    assert for_channels((1, 2, 3), 1) == (2,)


def write_bands(folder, kind):
    """Three pairs with five channels of 12 bits."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(3):
        bands = random.integers(0, 4096, (24, 32, 5), dtype=np.uint16)
        if kind == "npy":
            np.save(folder / "images" / f"{index}.npy", bands.transpose(2, 0, 1))
        else:
            tiff = folder / "images" / f"{index}.tif"
            tifffile.imwrite(tiff, bands, photometric="minisblack", planarconfig="contig")
        Image.fromarray((bands[..., 0] > 2000).astype(np.uint8)).save(folder / "masks" / f"{index}.png")
    (folder / "classes.json").write_text(json.dumps(["dark", "bright"]))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_five_channels_of_12_bits_go_through_all_commands(kind, tmp_path, capsys):
    data, run, masks = write_bands(tmp_path / "data", kind), str(tmp_path / "run"), tmp_path / "masks"
    options = ["--num-channels", "5", "--value-range", "0", "4095"]
    assert check.main([data]) == 1
    assert "--num-channels 5" in capsys.readouterr().out
    assert check.main([data, *options[:2]]) == 0
    assert "--value-range 0 4095" in capsys.readouterr().out
    splits = ["--train", data, "--val", data]
    run_options = [*TINY_RUN, "--steps", "1", "--cpu", "--output"]
    assert train.main([*TINY_MODEL, *splits, *run_options, run, *options]) == 0
    assert train.main([*splits, *run_options, f"{run}-2", "--init-from", run, *options[2:]]) == 0
    scores = evaluate.evaluate(evaluate.new_parser().arguments([f"{run}-2", "--data", data, "--cpu"]))
    assert predict.main([f"{run}-2", f"{data}/images", "--output", str(masks), "--cpu", "--overlay"]) == 0
    ending = "tif" if kind == "tif" else "png"
    predicted = [np.asarray(Image.open(masks / f"{index}.{ending}")) for index in range(3)]
    truth = [np.asarray(Image.open(f"{data}/masks/{index}.png")) for index in range(3)]
    assert np.mean(np.equal(predicted, truth)) == pytest.approx(scores["pixel_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--num-channels", "5"], ["--set", "num_channels=5"]])
def test_a_run_starts_from_rgb_weights_for_five_channels(option, tmp_path, caplog):
    data = write_bands(tmp_path / "data", "npy")
    rgb = tmp_path / "rgb"
    (rgb / "images").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (32, 24), (90, 90 + index, 90)).save(rgb / "images" / f"{index}.png")
    (rgb / "masks").symlink_to(tmp_path / "data" / "masks")
    (rgb / "classes.json").write_text(json.dumps(["dark", "bright"]))
    run_options = [*TINY_RUN, "--steps", "1", "--cpu", "--output"]
    assert train.main([*TINY_MODEL, "--train", str(rgb), *run_options, str(tmp_path / "a")]) == 0
    start = ["--init-from", str(tmp_path / "a"), "--value-range", "0,4095", *option]
    assert train.main(["--train", data, *run_options, str(tmp_path / "b"), *start]) == 0
    assert "from 3 to 5 channels" in caplog.text


def test_the_names_of_the_group_are_those_that_a_run_stores():
    assert set(reading_names()) == {
        *("classes", "image_column", "mask_column", "num_channels", "value_range", "pixel_limit")
    }
