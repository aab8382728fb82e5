from types import SimpleNamespace

import pytest
import torch
from cases import each

from contextseg import NnFormerConfig
from contextseg.training.loss_fields import check_loss_is_ours, loss_fields
from contextseg.training.optim import learning_rate_factor
from contextseg.training.option_texts import spacing, volume_size, window_sides
from contextseg.training.options import SegmentationArguments
from contextseg.training.segmentation import SegmentationTask
from contextseg.training.setup import new_optimizer, new_schedule
from contextseg.training.volume_options import check_for_images, check_for_volumes
from contextseg.training.volume_segmentation import VolumeSegmentationTask
from contextseg.training.volumetric import trains_on_volumes


def test_sizes_of_volumes_have_one_or_three_numbers():
    assert volume_size("64x128x96", "--crop-size") == (64, 128, 96)
    assert volume_size("64", "--crop-size") == (64, 64, 64)
    with pytest.raises(ValueError, match="--crop-size 64x128 has two numbers, but volumes have three axes"):
        volume_size("64x128", "--crop-size")


@each("text", ["1x2x3x4", "axbxc", "0x1x1", "64x128x", "64x99999x64"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="--crop-size"):
        window_sides(text, "--crop-size")


def test_a_spacing_is_one_or_three_numbers_of_millimeters():
    assert spacing("3x0.76x0.76") == spacing("3,0.76,0.76") == (3.0, 0.76, 0.76)
    assert spacing("1.5") == (1.5, 1.5, 1.5)


@each("text", ["1x2", "nanx1x1", "0", "-1x1x1", "a", "1x1x2000"])
def test_other_spacings_are_refused(text):
    with pytest.raises(ValueError, match="--target-spacing"):
        SegmentationArguments(target_spacing=text)


VOLUMES = {
    "nnformer": {"model": "nnformer"},
    "nnformer of a preset": {"model": "nnformer", "preset": "acdc"},
    "images": {},
    "segformer": {"model": "segformer"},
    "images, set": {"model": "glam_swin", "set": ["window_size=4"]},
    "classification": {"model": "glam_swin", "preset": "nano"},
}


def test_the_model_says_whether_a_run_is_about_volumes():
    found = {name for name, options in VOLUMES.items() if trains_on_volumes(SegmentationArguments(**options))}
    assert found == {"nnformer", "nnformer of a preset"}


OF_IMAGES = {
    "rotation": (20.0, "--rotation has no effect on volumes"),
    "base_size": ("64x64", "--base-size has no effect on volumes"),
    "class_weights": ("auto", "--class-weights auto counts the pixels of images"),
    "blend": ("center", "--blend center is for images"),
}


@each("name", list(OF_IMAGES))
def test_options_of_images_are_refused_for_volumes(name):
    value, message = OF_IMAGES[name]
    with pytest.raises(ValueError, match=message):
        check_for_volumes(SegmentationArguments(**{name: value}))


@each("name", ["target_spacing", "slice_axis", "normalization", "prepared"])
def test_options_of_volumes_are_refused_for_images(name):
    values = {"target_spacing": "1", "slice_axis": "x", "normalization": "ct", "prepared": "here"}
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is an option of volumes"):
        check_for_images(SegmentationArguments(**{name: values[name]}))


def test_default_options_are_for_both():
    check_for_images(SegmentationArguments())
    check_for_volumes(SegmentationArguments())


RATES = {
    "images": ({"preset": "nano"}, 6e-5),
    "volumes": ({"model": "nnformer", "preset": "nano"}, 1e-3),
    "given": ({"model": "nnformer", "preset": "nano", "learning_rate": 0.01}, 0.01),
}


@each("name", list(RATES))
def test_the_learning_rate_follows_from_what_is_trained(name):
    options, expected = RATES[name]
    arguments = SegmentationArguments(train="train", **options)
    task = VolumeSegmentationTask if "model" in options else SegmentationTask
    task(arguments)
    assert arguments.learning_rate == expected


def test_weights_to_start_from_keep_the_rate_of_fine_tuning():
    arguments = SegmentationArguments(init_from="runs/volumes")
    assert VolumeSegmentationTask.usual_learning_rate(arguments) == 6e-5


def test_the_lowest_rate_is_at_most_the_usual_one():
    with pytest.raises(ValueError, match="--min-learning-rate 0.001 is larger than --learning-rate 6e-05"):
        SegmentationTask(SegmentationArguments(min_learning_rate=1e-3))


class OneLayer(torch.nn.Linear):
    base_model_prefix = "backbone"


def test_sgd_has_nesterov_momentum_and_decays_weights_only():
    arguments = SegmentationArguments(optimizer="sgd", learning_rate=0.01, weight_decay=3e-5)
    optimizer = new_optimizer(arguments, OneLayer(2, 3))
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(group["momentum"], group["nesterov"]) for group in optimizer.param_groups] == [(0.99, True)] * 2
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0, 3e-5]


def test_the_power_bends_the_poly_schedule():
    bent = {"steps": 100, "warmup_steps": 0, "schedule": "poly", "power": 0.9}
    assert learning_rate_factor(50, **bent) == pytest.approx(0.5**0.9)
    poly, cosine = (
        new_schedule(SegmentationArguments(schedule=shape, poly_power=0.9, steps=10, batch_size=2), 4, 1)
        for shape in ("poly", "cosine")
    )
    assert (poly.power, cosine.power) == (0.9, 1.0)


def test_the_loss_of_nnformer_is_an_option():
    fields = loss_fields(
        SegmentationArguments(loss="foreground_dice+2*cross_entropy", class_weights="1,2,3"),
        SimpleNamespace(classes=["a", "b", "c"]),
    )
    config = NnFormerConfig.preset("nano", num_labels=3, **fields)
    check_loss_is_ours(SimpleNamespace(config=config), fields)
    assert (config.loss, config.class_weights) == ("foreground_dice+2*cross_entropy", [1, 2, 3])
