"""Pictures of attention and Grad-CAM, and what is said before anything is segmented."""

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image
from tiny import tiny_glam_swin, tiny_segdeformer

from contextseg import Inference
from contextseg.modeling.grad_cam import class_activation, grad_cam
from contextseg.training import explaining
from contextseg.training.explaining import (
    attention_explanation,
    chosen_explanations,
    grad_cam_explanation,
    windowed_grad_cam,
)


@pytest.fixture
def case():
    """A model, a photograph, its pixels at half the size, and its mask, in which class 2 does not occur."""
    torch.manual_seed(0)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    mask = torch.zeros(40, 60, dtype=torch.int32)
    mask[:, 30:] = 1
    return tiny_segdeformer().eval(), photo, torch.randn(1, 3, 20, 30), mask


@pytest.mark.parametrize("build", [tiny_segdeformer, lambda: tiny_glam_swin(num_global_tokens=0)])
def test_a_model_without_global_attention_is_refused_with_the_option_to_use(build):
    with pytest.raises(ValueError, match=r"--explain needs the global attention .* use --grad-cam 3,4\."):
        attention_explanation(build(), "3,4")


@each(
    ("text", "message"),
    [
        ("rode", "neither a class of the model nor a position X,Y in pixels. Did you mean 'road'"),
        ("7", "The classes are road, sky, tree"),
    ],
)
def test_a_class_that_the_model_does_not_have_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        grad_cam_explanation(tiny_segdeformer(), text)


def test_positions_outside_the_image_are_named(case):
    model, photo, pixels, mask = case
    for draw in (grad_cam_explanation(model, "60,3"), attention_explanation(tiny_glam_swin(), "60,3")):
        with pytest.raises(ValueError, match="60,3 is outside the image of 60x40"):
            draw(photo, pixels, mask)


@each(
    ("text", "label", "region", "title"),
    [
        ("sky", 1, np.s_[:, 30:], "sky, Grad-CAM"),
        ("tree", 2, np.s_[:, :], "tree (not predicted), Grad-CAM"),
        ("45,7", 1, np.s_[7, 45], "sky at the cross, Grad-CAM"),
    ],
)
def test_grad_cam_is_drawn_of_the_class_in_its_region(text, label, region, title, case):
    model, photo, pixels, mask = case
    chosen = torch.zeros(40, 60)
    chosen[region] = 1
    seen = torch.nn.functional.avg_pool2d(chosen[None], 2)[0]  # at the size of the pixels
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            explaining, "heat_picture", lambda *given, **options: drawn.update(options, given=given)
        )
        grad_cam_explanation(model, text)(photo, pixels, mask)
    image, heat, label_text = drawn["given"]
    assert (image, label_text) == (photo, title)
    assert (drawn["position"], drawn["low"]) == ((45, 7) if "," in text else None, 0)
    expected = Image.fromarray(grad_cam(model, pixels, label, seen)[0].numpy())
    np.testing.assert_array_equal(heat, np.asarray(expected.resize(photo.size, Image.Resampling.BILINEAR)))


def test_in_windows_the_map_is_that_of_each_window_that_has_pixels_of_the_region(case):
    model, _, _, mask = case
    pixels, region = torch.randn(1, 3, 40, 60), mask == 1  # the right half
    heat = windowed_grad_cam(model, pixels, 1, region, (24, 20))
    expected = torch.zeros(40, 60)
    for top, left in [(0, 20), (0, 40), (16, 20), (16, 40)]:  # none at the left; the lower ones end at row 40
        place = (slice(top, top + 24), slice(left, left + 20))
        found = class_activation(model, pixels[..., *place], 1, region[place], -1)[0]
        expected[place] = torch.maximum(expected[place], found)
    torch.testing.assert_close(heat, expected / expected.max())
    whole = windowed_grad_cam(model, pixels, 1, region, (99, 99))
    torch.testing.assert_close(whole, grad_cam(model, pixels, 1, region)[0])


def test_the_options_that_are_given_are_drawn():
    model = tiny_glam_swin()
    chosen = (
        chosen_explanations(model, Inference(), None, "sky"),
        chosen_explanations(model, Inference(), "3,4", None),
    )
    assert [[*kinds] for kinds in chosen] == [["grad-cam"], ["attention"]]
