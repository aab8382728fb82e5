"""Claims about Grad-CAM: the formula, the regions, and that nothing stays behind on the model."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from tiny import FOREIGN_SEGMENTERS, SEGMENTERS, pixels_for, size_for, tiny_segdeformer
from transformers import BeitConfig, BeitForSemanticSegmentation

from contextseg import grad_cam


def tiny_beit():
    """A plain vision transformer of transformers without a backbone: its hidden states are tokens."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    return BeitForSemanticSegmentation(
        BeitConfig(**sizes, image_size=64, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], num_labels=3)
    )


ALL = {**SEGMENTERS, **FOREIGN_SEGMENTERS, "beit": tiny_beit}


def built(name):
    torch.manual_seed(0)
    return ALL[name]().eval()


def literal(model, pixels, label, region, level):
    """The formula of the paper, with each channel's gradient by a central difference of the score."""
    with torch.no_grad():
        maps = list(model.double().backbone(pixels).feature_maps)

        def score(changed):
            logits = model.classifier(model.decoder([*maps[:level], changed, *maps[level + 1 :]]).feature_map)
            return logits[0, label][region].sum()

        chosen, step = maps[level], 1e-5
        weights = []
        for channel in range(chosen.shape[1]):  # the mean of the gradient is that along all positions at once
            shift = torch.zeros_like(chosen)
            shift[:, channel] = step / chosen[0, 0].numel()
            weights.append((score(chosen + shift) - score(chosen - shift)) / (2 * step))
        return torch.stack(weights)[:, None, None].mul(chosen[0]).sum(0).relu()


@each("level", [0, 1])
def test_the_map_is_the_formula_of_the_paper(level):
    model, pixels = built("glam_swin_fpn"), torch.randn(1, 3, 32, 48, dtype=torch.float64)
    region = torch.zeros(8, 12, dtype=torch.bool)
    region[2:5, 3:9] = True
    expected = literal(model, pixels, 1, region, level)
    expected = F.interpolate(expected[None, None], size=(32, 48), mode="bilinear")[0, 0]
    found = grad_cam(model, pixels, 1, region.repeat_interleave(4, 0).repeat_interleave(4, 1), level=level)[0]
    torch.testing.assert_close(found.double(), expected / expected.max(), atol=1e-4, rtol=1e-4)


def state_of(model):
    return [
        (value.requires_grad, value.grad is None, value.detach().clone()) for value in model.parameters()
    ], sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@each("name", [*ALL])
def test_every_segmenter_is_explained_and_left_as_it_was(name):
    model = built(name)
    pixels = pixels_for(model, 2, 3, 64, 64)
    with torch.no_grad():
        model(pixel_values=pixels, output_hidden_states=True)  # transformers adds hooks of its own here
        next(model.parameters()).requires_grad_(False)
        before, hooks = state_of(model)
        maps = grad_cam(model, pixels, 1)
    after, hooks_after = state_of(model)
    assert maps.shape == (2, *pixels.shape[2:])
    assert not maps.requires_grad
    assert ((maps >= 0) & (maps <= 1)).all()
    assert maps.flatten(1).amax(dim=1).tolist() == [1.0, 1.0]
    assert hooks == hooks_after
    assert all(
        one[:2] == other[:2] and one[2].equal(other[2]) for one, other in zip(before, after, strict=True)
    )


@each("size", [(1, 1, 1), (3, 5, 70)])
def test_images_and_volumes_of_any_size_are_explained(size):
    for name in ("glam_swin", "segdeformer_unet", "glam_nnformer"):
        model = built(name)
        assert grad_cam(model, pixels_for(model, 1, *size), 0).shape == (1, *size_for(model, *size))


def test_the_map_of_one_slice_is_that_of_the_image():
    """Weights of a flat network are those of the volume's, whose windows, patches and strides have one slice."""
    flat = {"patch_size": (1, 4, 4), "merge_strides": ((1, 2, 2),), "window_size": (1, 4, 4)}
    volumes = ALL["glam_swin_volumes"](**flat, num_channels=3).eval()
    image = ALL["glam_swin_unet"]().eval()
    shapes = {key: value.shape for key, value in image.state_dict().items()}
    weights = volumes.state_dict()
    image.load_state_dict({key: weights[key].reshape(shape) for key, shape in shapes.items()})
    pixels = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    region = torch.arange(32 * 48).reshape(1, 32, 48) % 7 == 0
    found = grad_cam(volumes, pixels[:, :, None], 1, region[:, None], level=0)[:, 0]
    torch.testing.assert_close(found, grad_cam(image, pixels, 1, region, level=0), rtol=1e-4, atol=1e-5)


def test_each_image_of_a_batch_has_its_own_map():
    model, pixels = built("segdeformer"), torch.randn(2, 3, 37, 50)
    regions = torch.rand(2, 37, 50) > 0.5
    alone = [grad_cam(model, pixels[i : i + 1], 1, regions[i]) for i in range(2)]
    torch.testing.assert_close(grad_cam(model, pixels, 1, regions), torch.cat(alone))


def test_the_region_is_by_default_where_the_class_is_predicted_or_everything():
    model, pixels = built("segdeformer"), torch.randn(1, 3, 32, 32)
    predicted = model(pixels).logits.argmax(1)
    present, absent = int(predicted[0, 0, 0]), 2
    model.classifier.bias.data[absent] -= 100
    region = (predicted == present).repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(grad_cam(model, pixels, present), grad_cam(model, pixels, present, region))
    everything = torch.ones(32, 32)
    torch.testing.assert_close(grad_cam(model, pixels, absent), grad_cam(model, pixels, absent, everything))


def test_only_the_decoder_keeps_activations():
    model = built("glam_swin")
    seen = []
    model.backbone.register_forward_hook(lambda _module, _inputs, outputs: seen.extend(outputs.feature_maps))
    grad_cam(model, torch.randn(1, 3, 32, 32), 0)
    assert [feature_map.requires_grad for feature_map in seen] == [False, False]


def test_inference_mode_of_the_caller_is_undone():
    model = built("glam_swin")
    with torch.inference_mode():
        pixels = torch.randn(1, 3, 32, 32)
        maps = grad_cam(model, pixels, 0)
    torch.testing.assert_close(maps, grad_cam(model, pixels.clone(), 0))


@each(
    ("options", "message"),
    [
        ({"label": 3}, "no class 3. Choose an id from 0 to 2"),
        ({"label": 0, "level": 2}, "feature map 2 does not exist. Choose 0 to 1"),
        ({"label": 0, "region": torch.zeros(8, 8)}, "with at least one pixel"),
        ({"label": 0, "region": torch.ones(3, 8, 8)}, "does not suit a batch of 1"),
        ({"label": 0, "region": torch.ones(8)}, "does not suit a batch of 1"),
        ({"label": "road"}, "label2id"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(built("segdeformer"), torch.randn(1, 3, 32, 32), **options)


@each(("name", "shape"), [("segdeformer", (1, 3, 2, 32, 32)), ("nnformer", (1, 1, 32, 32))])
def test_inputs_with_other_axes_than_the_models_are_refused(name, shape):
    with pytest.raises(ValueError, match="the model takes (images|volumes)"):
        grad_cam(built(name), torch.randn(shape), 0)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="Call model.eval"):
        grad_cam(tiny_segdeformer().train(), torch.randn(1, 3, 32, 32), 0)
