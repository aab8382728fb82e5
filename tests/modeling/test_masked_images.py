import pytest
import torch
from cases import each
from tiny import tiny_caswit, tiny_glam_swin, tiny_maformer
from transformers import AutoModelForMaskedImageModeling, SwinConfig, SwinForMaskedImageModeling

from contextseg import GlamSwinModel
from contextseg.modeling.masked_images import masked_footprint, random_mask
from contextseg.modeling.swin_checkpoints import convert_swin_state_dict

SEGMENTERS = {
    "swin": lambda: tiny_glam_swin(num_global_tokens=0),
    "glam_swin": tiny_glam_swin,
    "maformer": tiny_maformer,
    "caswit": lambda: tiny_caswit(crop_size=64),
    "caswit_tied": lambda: tiny_caswit(crop_size=64, tie_encoders=True, fusion_feeds_next_stage=False),
}


def masked_model(name):
    torch.manual_seed(0)
    return AutoModelForMaskedImageModeling.from_config(SEGMENTERS[name]().config).eval()


def inputs(name, side=64):
    """Images, and contexts of models that take them."""
    torch.manual_seed(1)
    pixels = {"pixel_values": torch.randn(2, 3, side, side)}
    return pixels | ({"context_values": torch.randn(2, 3, side, side)} if "caswit" in name else {})


def test_the_mask_is_75_percent_of_units_of_32_pixels_in_every_image():
    masked = random_mask(5, (128, 128), 8)
    units = masked.unflatten(2, (16, 8)).unflatten(1, (16, 8)).transpose(2, 3).flatten(3)
    assert torch.equal(units.any(-1), units.all(-1))
    assert units.all(-1).sum((1, 2)).tolist() == [192] * 5
    assert not torch.equal(masked[0], masked[1])


def test_units_at_the_end_of_an_image_are_smaller():
    masked = random_mask(50, (9, 4), 8)
    assert torch.equal(masked[:, 0], masked[:, 7])
    assert masked.sum((1, 2)).unique().tolist() == [36]  # both units: 75 % of two, rounded up
    assert random_mask(50, (9, 4), 8, share=0.5).sum((1, 2)).unique().tolist() == [4, 32]


def test_a_generator_repeats_the_mask():
    first, again = (random_mask(2, (20, 20), 4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_the_footprint_is_the_central_half_of_a_context_of_ratio_2():
    footprint = masked_footprint((512, 512), 4, 2, torch.device("cpu"))
    assert footprint.shape == (128, 128)
    assert footprint.any(1).nonzero().flatten().tolist() == list(range(32, 96))
    assert footprint.sum() == 64**2


@each(("side", "patch", "ratio"), [(16, 4, 3), (20, 4, 3), (17, 4, 2), (24, 3, 5), (8, 4, 1)])
def test_the_footprint_is_every_patch_with_a_pixel_of_the_crop(side, patch, ratio):
    source = (
        torch.arange(ratio * side) - (ratio - 1) * side // 2
    )  # rows of the context, counted from the crop
    inside = (source >= 0) & (source < side)
    cells = [bool(part.any()) for part in inside.split(ratio * patch)]
    footprint = masked_footprint((side, side), patch, ratio, torch.device("cpu"))
    assert torch.equal(footprint, torch.tensor(cells)[:, None] & torch.tensor(cells))


@each("name", list(SEGMENTERS))
def test_the_reconstruction_does_not_depend_on_masked_pixels(name):
    model, given = masked_model(name), inputs(name)
    for tensor in given.values():
        tensor.requires_grad_()
    masked = random_mask(2, (16, 16), 8)
    model(**given, bool_masked_pos=masked).reconstruction.square().sum().backward()
    gradient = given["pixel_values"].grad.abs().amax(1)
    is_masked = masked.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert not gradient[is_masked].any()
    assert gradient[~is_masked].all()
    if "caswit" not in name:
        return
    context = given["context_values"].grad.abs().amax(1)
    assert not context[:, 16:48, 16:48].any()
    context[:, 16:48, 16:48] = 1
    assert context.all()


@each("name", list(SEGMENTERS))
def test_the_loss_is_the_mean_absolute_error_of_masked_pixels(name):
    model, given = masked_model(name), inputs(name, side=61)
    masked = random_mask(2, (16, 16), 8)
    pixel_mask = torch.ones(2, 61, 61)
    pixel_mask[1, 40:] = 0
    outputs = model(**given, bool_masked_pos=masked.flatten(1), pixel_mask=pixel_mask)
    counted = masked.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :61, :61] & (pixel_mask > 0)
    error = (outputs.reconstruction - given["pixel_values"]).abs().movedim(1, -1)
    torch.testing.assert_close(outputs.loss, error[counted].mean())


@each("name", list(SEGMENTERS))
def test_every_parameter_learns_from_a_batch_of_one(name):
    model = masked_model(name).train()
    model(torch.randn(1, 3, 70, 33)).loss.backward()
    silent = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert [key for key in silent if not key.endswith("k_proj.bias")] == []


def test_without_global_tokens_it_is_transformers_swin():
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    theirs = SwinForMaskedImageModeling(SwinConfig(**sizes, image_size=64, encoder_stride=8)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = {
        f"backbone.{key}": value for key, value in convert_swin_state_dict(theirs.state_dict()).items()
    }
    weights["backbone.mask_vector.weight"] = theirs.swin.embeddings.mask_token.flatten()
    weights["pixel_head.projection.weight"] = theirs.decoder[0].weight[..., 0, 0]
    weights["pixel_head.projection.bias"] = theirs.decoder[0].bias
    ours = masked_model("swin")
    ours.load_state_dict(weights)
    pixels, masked = torch.randn(2, 3, 64, 64), random_mask(2, (16, 16), 8).flatten(1)
    with torch.no_grad():
        found, expected = (model(pixels, bool_masked_pos=masked) for model in (ours, theirs))
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss)


@each("name", list(SEGMENTERS))
def test_a_segmenter_starts_from_the_pretrained_encoder(name):
    weights, segmenter = masked_model(name).state_dict(), SEGMENTERS[name]()
    model, info = type(segmenter).from_pretrained(
        None, config=segmenter.config, state_dict=weights, output_loading_info=True
    )
    fresh = (
        *("backbone.norms.", "decoder.", "classifier.", "auxiliary_head.", "context_head."),
        "backbone.encoder.fusions.stage1.",  # the tied one's, which do not reach its last features
    )
    assert [key for key in info["missing_keys"] if not key.startswith(fresh)] == []
    loaded = model.state_dict()
    kept = [key for key in weights if key.startswith("backbone.encoder.")]
    assert len(kept) > 20
    assert all(torch.equal(weights[key], loaded[key]) for key in kept)


def test_an_image_is_cut_into_tiles_with_their_contexts():
    model, image = masked_model("caswit"), torch.randn(1, 3, 100, 128)
    masked = random_mask(4, (16, 16), 8)
    whole = model(image, bool_masked_pos=masked)
    tile = torch.nn.functional.pad(image[:, :, 64:, 64:], (0, 0, 0, 28))
    around = torch.nn.functional.pad(image, (0, 32, 0, 60))[:, :, 32:, 32:]
    pair = model(tile, torch.nn.functional.avg_pool2d(around, 2), bool_masked_pos=masked[3:])
    assert whole.reconstruction.shape == image.shape
    torch.testing.assert_close(whole.reconstruction[:, :, 64:, 64:], pair.reconstruction[:, :, :36])


@each("shape", [(2, 255), (1, 256), (2, 8, 32)])
def test_a_mask_of_another_grid_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"bool_masked_pos has shape .*\(2, 256\) or \(2, 16, 16\) is required"
    ):
        masked_model("swin")(**inputs("swin"), bool_masked_pos=torch.ones(shape))


def test_models_without_a_mask_vector_refuse_a_mask():
    model = GlamSwinModel(tiny_glam_swin().config)
    with pytest.raises(ValueError, match="AutoModelForMaskedImageModeling"):
        model(torch.randn(1, 3, 16, 16), bool_masked_pos=torch.ones(1, 4, 4, dtype=torch.bool))
