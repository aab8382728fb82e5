import io
import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from PIL import Image
from transformers import (
    AutoImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from contextseg.processing import logits_to_masks
from contextseg.processing.image_processing_segmentation import (
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
)
from contextseg.processing.label_maps import LabelMap
from contextseg.processing.overlays import mask_image
from contextseg.processing.palettes import class_colors, colorize, default_palette
from contextseg.processing.resize_rules import resized_size

BACKENDS = [SegmentationImageProcessor, SegmentationImageProcessorPil]
both_backends = pytest.mark.parametrize("processor_class", BACKENDS)


def random_image(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def mask(height, width, num_classes=4, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, (height, width), np.uint8)


def outputs(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SemanticSegmenterOutput(logits=torch.randn(*shape, generator=generator))


@both_backends
def test_by_default_an_image_keeps_its_size_and_is_normalized(processor_class):
    processor, image = processor_class(), random_image(5, 7)
    pixel_values = processor(image, return_tensors="pt").pixel_values
    expected = (image / 255 - processor.image_mean) / processor.image_std
    torch.testing.assert_close(pixel_values[0], torch.from_numpy(expected).permute(2, 0, 1).float())


@both_backends
def test_a_batch_of_mixed_sizes_is_padded_with_the_mean_color_and_ignored_labels(processor_class):
    processor = processor_class(ignore_index=99)
    batch = processor([random_image(4, 6), random_image(5, 3)], [mask(4, 6), mask(5, 3)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 5, 6)
    assert batch.pixel_mask.sum((1, 2)).tolist() == [24, 15]
    padding = batch.pixel_mask == 0
    assert batch.pixel_values.movedim(1, -1)[padding].abs().max() == 0
    assert batch.labels[padding].unique().tolist() == [99]
    alone = processor(random_image(5, 3), mask(5, 3), return_tensors="pt")
    torch.testing.assert_close(batch.pixel_values[1:, :, :5, :3], alone.pixel_values)
    torch.testing.assert_close(batch.labels[1:, :5, :3], alone.labels)


@both_backends
def test_a_batch_of_equal_sizes_has_no_pixel_mask(processor_class):
    batch = processor_class()([random_image(4, 6), random_image(4, 6)], return_tensors="pt")
    assert set(batch) == {"pixel_values"}


def test_without_padding_mixed_sizes_stay_a_list():
    batch = SegmentationImageProcessor(do_pad=False)([random_image(4, 6), random_image(5, 3)])
    assert [tuple(values.shape) for values in batch.pixel_values] == [(3, 4, 6), (3, 5, 3)]


@both_backends
def test_labels_are_resized_with_the_nearest_pixel(processor_class):
    processor, labels = processor_class(size={"height": 6, "width": 9}), mask(4, 7, num_classes=256)
    resized = processor(
        random_image(4, 7), labels, return_tensors="pt", label_map={i: i for i in range(256)}, ignore_index=-1
    ).labels
    expected = F.interpolate(torch.from_numpy(labels)[None, None].float(), (6, 9), mode="nearest-exact")
    torch.testing.assert_close(resized, expected[0].long())


def test_the_two_backends_agree_to_one_gray_level():
    image, labels, size = random_image(20, 31), mask(20, 31), {"shortest_edge": 9}
    one, other = (cls(size=size)(image, labels, return_tensors="pt") for cls in BACKENDS)
    assert (one.pixel_values - other.pixel_values).abs().max() < 1.01 / 255 / 0.224
    torch.testing.assert_close(one.labels, other.labels)


@both_backends
def test_a_size_can_be_switched_off_and_given_at_call_time(processor_class):
    image = random_image(8, 10)
    off = processor_class(size={"height": 4, "width": 4}, do_resize=False)
    assert off(image, return_tensors="pt").pixel_values.shape[-2:] == (8, 10)
    given = processor_class()(image, size={"max_pixels": 20}, return_tensors="pt")
    assert given.pixel_values.shape[-2:] == (4, 5)


@each(
    ("rule", "expected"),
    [
        ({"height": 3, "width": 8}, (3, 8)),
        ({"shortest_edge": 50}, (50, 100)),
        ({"shortest_edge": 50, "longest_edge": 60}, (30, 60)),
        ({"max_pixels": 5000}, (50, 100)),
        ({"max_pixels": 50_000}, (100, 200)),
    ],
)
def test_each_resize_rule_gives_its_size(rule, expected):
    assert resized_size(100, 200, rule) == expected


@each("size", [(1, 5000), (5000, 1), (48, 6447), (1, 1)])
@each("rule", [{"shortest_edge": 8, "longest_edge": 16}, {"max_pixels": 100}])
def test_long_thin_images_never_get_a_side_of_zero(size, rule):
    height, width = resized_size(*size, rule)
    assert min(height, width) >= 1
    assert max(height, width) <= rule.get("longest_edge", 100)
    assert height * width <= rule.get("max_pixels", 256)


@each("rule", [{"longest_edge": 8}, {"height": 8}, {"height": 0, "width": 8}, 224, {"max_pixels": 1.5}])
def test_an_unknown_resize_rule_lists_the_known_ones(rule):
    with pytest.raises(ValueError, match="not a resize rule|whole numbers"):
        SegmentationImageProcessor(size=rule)


def test_a_size_that_explodes_a_thin_image_is_refused():
    with pytest.raises(ValueError, match="1x451 image to 1000x451000, above the limit"):
        SegmentationImageProcessor(size={"shortest_edge": 1000})(random_image(451, 1))


@both_backends
def test_images_of_n_channels_have_their_own_mean_and_std(processor_class):
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    processor = processor_class(do_convert_rgb=False, image_mean=mean, image_std=std)
    image = random_image(4, 6, channels=5)
    values = processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(values[0, 4], torch.from_numpy((image[..., 4] / 255 - 0.5) / 0.1).float())
    assert processor(image, size={"height": 2, "width": 3}, return_tensors="pt").pixel_values.shape == (
        1,
        5,
        2,
        3,
    )


@both_backends
def test_16_bit_channels_are_not_rounded_to_8_bits(processor_class):
    gray = np.array([[1, 300, 65535]], np.uint16)
    processor = processor_class(do_convert_rgb=False, image_mean=[0.0], image_std=[1.0])
    values = processor(Image.fromarray(gray), return_tensors="pt").pixel_values
    np.testing.assert_allclose(values[0, 0], gray / 65535, rtol=1e-5)


def test_channels_that_cannot_be_rgb_are_refused_with_advice():
    with pytest.raises(ValueError, match="Pass do_convert_rgb=False"):
        SegmentationImageProcessor(image_mean=[0.5] * 5, image_std=[0.5] * 5)(random_image(4, 4, channels=5))


@both_backends
def test_float_images_are_scaled_by_the_stated_range(processor_class):
    image = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 4, 3)
    processor = processor_class(value_range=[-1, 1], do_normalize=False)
    values = processor(image, return_tensors="pt").pixel_values
    np.testing.assert_allclose(values[0].movedim(0, -1), (image + 1) / 2, atol=0.6 / 255)


@both_backends
def test_the_callers_arrays_are_left_alone(processor_class):
    image, labels = random_image(4, 4), mask(4, 4)
    before = image.copy(), labels.copy()
    processor_class(label_map={i: 3 - i for i in range(4)})(image, labels)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


@both_backends
def test_masks_are_decoded_through_the_label_map(processor_class):
    processor = processor_class(label_map={0: "ignore", 1: 0, "#ff0000": 1})
    labels = processor(random_image(1, 2), np.array([[0, 1]]), return_tensors="np").labels
    assert labels.tolist() == [[[255, 0]]]
    red = np.array([[[255, 0, 0], [255, 0, 0]]], np.uint8)
    assert processor(random_image(1, 2), red, return_tensors="np").labels.tolist() == [[[1, 1]]]


def test_color_masks_are_decoded_through_the_palette():
    processor = SegmentationImageProcessor(palette=[(1, 2, 3), (4, 5, 6)])
    colors = Image.fromarray(np.array([[[4, 5, 6], [1, 2, 3]]], np.uint8))
    assert processor(random_image(1, 2), colors, return_tensors="np").labels.tolist() == [[[1, 0]]]


def test_palette_images_are_decoded_by_color_when_the_label_map_has_only_colors():
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0])
    processor = SegmentationImageProcessor(label_map={"#ff0000": 0, "#000000": 1})
    assert processor.decode_mask(image).tolist() == [[1, 0]]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="is 5x4, but its image .* is 6x4"):
        SegmentationImageProcessor()(random_image(4, 6), mask(4, 5))


def test_a_missing_mask_is_refused():
    with pytest.raises(ValueError, match="got 2 images and 1 masks"):
        SegmentationImageProcessor()([random_image(4, 6), random_image(4, 6)], [mask(4, 6)])


def test_a_batch_may_be_one_array():
    images, masks = (
        np.stack([random_image(4, 6), random_image(4, 6)]),
        np.stack([mask(4, 6), mask(4, 6, seed=1)]),
    )
    batch = SegmentationImageProcessor()(images, masks, return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(batch.labels, masks)


@each("images", [lambda i: i, lambda i: [i], lambda i: np.stack([i])])
@each("masks", [lambda m: m, lambda m: [m], Image.fromarray, lambda m: [Image.fromarray(m)]])
def test_one_image_and_one_mask_may_come_alone_or_in_a_list(images, masks):
    image, ids = random_image(4, 6), mask(4, 6).astype(np.uint8)
    batch = SegmentationImageProcessor()(images(image), masks(ids), return_tensors="pt")
    np.testing.assert_array_equal(batch.labels, ids[None])


def test_a_layout_of_arrays_that_was_given_is_what_the_message_counts():
    with pytest.raises(ValueError, match="has 40 channels"):
        SegmentationImageProcessor()(random_image(40, 50), input_data_format="channels_first")


def test_unknown_options_fail_with_a_suggestion():
    with pytest.raises(ValueError, match="no option 'label_maps', did you mean 'label_map'"):
        SegmentationImageProcessor(label_maps={})
    with pytest.raises(ValueError, match="crop_size=.* not supported"):
        SegmentationImageProcessor()(random_image(4, 4), crop_size={"height": 2, "width": 2})


@each("writer", BACKENDS)
@each("reader", BACKENDS)
def test_both_backends_save_and_load_the_same_file(tmp_path, writer, reader):
    options = {"label_map": {1: 0, (9, 9, 9): "ignore"}, "palette": [(1, 2, 3)], "size": {"max_pixels": 99}}
    processor = writer(**options, value_range=(0, 4095), ignore_index=7, image_mean=[0.5], image_std=[0.25])
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "SegmentationImageProcessor"
    assert saved["label_map"] == {"1": 0, "#090909": "ignore"}
    loaded = reader.from_pretrained(tmp_path).to_dict()
    assert {name: loaded[name] for name in processor.to_dict()} == processor.to_dict()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    assert SegmentationImageProcessor().save_pretrained(folder) == [str(folder / "preprocessor_config.json")]
    return folder


@each("load", [AutoImageProcessor.from_pretrained, *(cls.from_pretrained for cls in BACKENDS)])
def test_loading_refuses_unknown_options_and_takes_those_of_transformers(load, saved):
    with pytest.raises(ValueError, match="no option 'sizee', did you mean 'size'"):
        load(saved, sizee=3)
    with pytest.raises(ValueError, match="no option 'favourite'"):
        load(saved, favourite="blue")
    ours = {"size": {"max_pixels": 20}, "ignore_index": 0, "do_reduce_labels": False}
    hub = {
        "cache_dir": None,
        "revision": "main",
        "token": None,
        "trust_remote_code": False,
        "force_download": False,
    }
    processor = load(saved, **ours, **hub)
    assert {name: getattr(processor, name) for name in ours} == ours
    assert load(saved, return_unused_kwargs=True, favourite="blue")[1] == {"favourite": "blue"}


@both_backends
def test_a_size_can_always_be_read_and_has_an_effect_only_if_it_was_given(processor_class):
    """Scripts of transformers read `size["height"]`, and whether there is a "shortest_edge"."""
    processor, image = processor_class(), random_image(8, 10)
    assert processor.size == {"height": 512, "width": 512}
    assert "size" not in processor.to_dict()
    assert processor(image, return_tensors="pt").pixel_values.shape[-2:] == (8, 10)
    assert processor(image, do_resize=True, return_tensors="pt").pixel_values.shape[-2:] == (512, 512)
    assert processor_class(size=processor.size).to_dict() == processor.to_dict()
    processor.size = {"height": 4, "width": 5}
    assert processor(image, return_tensors="pt").pixel_values.shape[-2:] == (4, 5)
    processor.size = None
    assert processor(image, return_tensors="pt").pixel_values.shape[-2:] == (8, 10)


@both_backends
def test_do_reduce_labels_is_the_table_of_segformers_processor(processor_class, tmp_path):
    image, ids = random_image(16, 16), np.arange(256, dtype=np.uint8).reshape(16, 16)
    theirs = SegformerImageProcessor(do_reduce_labels=True, do_resize=False)(image, ids, return_tensors="pt")
    processor = processor_class(do_reduce_labels=True)
    table = {0: "ignore", 255: "ignore", **{value: value - 1 for value in range(1, 255)}}
    processor.save_pretrained(tmp_path)
    for ours in (
        processor(image, ids, return_tensors="pt"),
        processor_class()(image, ids, do_reduce_labels=True, return_tensors="pt"),
        processor_class(label_map=table)(image, ids, return_tensors="pt"),
        AutoImageProcessor.from_pretrained(tmp_path)(image, ids, return_tensors="pt"),
        AutoImageProcessor.from_pretrained(tmp_path, do_reduce_labels=True)(image, ids, return_tensors="pt"),
    ):
        assert torch.equal(ours.labels, theirs.labels)


def test_do_reduce_labels_never_contradicts_a_table_or_the_saved_processor(saved):
    with pytest.raises(ValueError, match="label_map and do_reduce_labels=True both say"):
        SegmentationImageProcessor(label_map={1: 0}, do_reduce_labels=True)
    with pytest.raises(ValueError, match="do_reduce_labels=True contradicts the saved image processor"):
        AutoImageProcessor.from_pretrained(saved, do_reduce_labels=True)


@each("sizes", [None, [(10, 12), (7, 8)]])
def test_scores_are_those_of_transformers_own_post_processing(sizes):
    pytest.importorskip("transformers.image_processing_outputs")  # older versions have none
    logits = outputs(2, 3, 5, 6)
    ours, theirs = (
        processor.post_process_semantic_segmentation(logits, sizes, return_segmentation_scores=True)
        for processor in (SegmentationImageProcessor(), SegformerImageProcessor())
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.segmentation, other.segmentation)
        torch.testing.assert_close(one.segmentation_scores, other.segmentation_scores)


@each("size", [(8, 8, 3), 8, (0, 8), (8, -1), None, ("a", "b")])
def test_target_sizes_that_are_not_height_and_width_are_refused(size):
    with pytest.raises(ValueError, match=r"target_sizes has .*, but must have \(height, width\)"):
        SegmentationImageProcessor().post_process_semantic_segmentation(outputs(1, 3, 4, 4), [size])


def test_an_orientation_that_exif_does_not_have_is_refused():
    with pytest.raises(ValueError, match="orientations has 9"):
        SegmentationImageProcessor().post_process_semantic_segmentation(
            outputs(1, 3, 4, 4), [(8, 8)], orientations=[9]
        )


@each("orientation", range(1, 9))
def test_scores_of_rotated_photographs_fit_their_masks(orientation):
    (output,) = SegmentationImageProcessor().post_process_semantic_segmentation(
        outputs(1, 3, 5, 6), [(10, 13)], orientations=[orientation], return_segmentation_scores=True
    )
    assert output.segmentation.shape == (10, 13)
    assert torch.equal(output.segmentation_scores.argmax(0), output.segmentation)


WRONG_NUMBERS = {
    "text": {"image_mean": "abc"},
    "one of three is not a number": {"image_mean": [0.5, 0.5, float("nan")]},
    "a deviation of 0": {"image_std": [0.2, 0, 0.2]},
    "nothing": {"image_std": []},
    "a negative factor": {"rescale_factor": -1},
    "a range the wrong way round": {"value_range": (255, 0)},
    "a range of three": {"value_range": [0, 1, 2]},
    "no pixels": {"pixel_limit": 0},
    "no filter": {"resample": 17},
    "text for a switch": {"do_normalize": "no"},
    "text for reduced labels": {"do_reduce_labels": "yes"},
    "an unknown layout": {"input_data_format": "hwc"},
    "a layout that no model takes": {"data_format": "channels_last"},
}


@each("options", WRONG_NUMBERS)
def test_numbers_that_make_no_sense_are_refused_by_the_constructor_and_by_a_call(options):
    (name,) = options
    for use in (SegmentationImageProcessor, partial(SegmentationImageProcessor(), random_image(2, 3))):
        with pytest.raises(ValueError, match=f"{name} is .*, but must be"):
            use(**options)


@each("size", [(13, 17), (1, 1), (4, 6), (64, 80)])
@each("chunk_values", [1, 3000, 1 << 24])
def test_masks_equal_interpolation_and_argmax_in_any_number_of_chunks(monkeypatch, size, chunk_values):
    monkeypatch.setattr(logits_to_masks, "CHUNK_VALUES", chunk_values)
    result = outputs(2, 19, 4, 6)
    masks = SegmentationImageProcessor().post_process_semantic_segmentation(result, target_sizes=[size, size])
    expected = F.interpolate(result.logits, size=size, mode="bilinear").argmax(1)
    torch.testing.assert_close(torch.stack(masks), expected)


@each("chunk_values", [1, 1 << 24])
def test_of_equal_logits_the_first_class_wins(monkeypatch, chunk_values):
    monkeypatch.setattr(logits_to_masks, "CHUNK_VALUES", chunk_values)
    result = SemanticSegmenterOutput(
        logits=torch.tensor([0.0, 2.0, 1.0, 2.0])[None, :, None, None].expand(1, 4, 3, 3)
    )
    (classes,) = SegmentationImageProcessor().post_process_semantic_segmentation(
        result, target_sizes=[(7, 8)]
    )
    assert classes.unique().tolist() == [1]


def test_the_upsampled_logits_of_all_classes_never_exist_at_once(monkeypatch):
    sizes, interpolate = [], F.interpolate
    monkeypatch.setattr(
        F,
        "interpolate",
        lambda *args, **kwargs: sizes.append((r := interpolate(*args, **kwargs)).numel()) or r,
    )
    monkeypatch.setattr(logits_to_masks, "CHUNK_VALUES", 5000)
    SegmentationImageProcessor().post_process_semantic_segmentation(
        outputs(1, 50, 8, 8), target_sizes=[(32, 32)]
    )
    assert max(sizes) <= 5000


def test_without_target_sizes_masks_have_the_size_of_the_logits():
    result = outputs(2, 5, 4, 6)
    masks = SegmentationImageProcessor().post_process_semantic_segmentation(result)
    torch.testing.assert_close(torch.stack(masks), result.logits.argmax(1))


@each("stride", [1, 4, 8])
def test_padding_is_cut_off_exactly(stride):
    processor, sizes = SegmentationImageProcessor(), [(13, 30), (33, 9), (1, 2)]
    batch = processor([random_image(*size) for size in sizes], return_tensors="pt")
    cells = [-(-side // stride) for side in batch.pixel_values.shape[-2:]]
    result = outputs(3, 6, *cells)
    masks = processor.post_process_semantic_segmentation(result, sizes, pixel_mask=batch.pixel_mask)
    for i, (height, width) in enumerate(sizes):
        own = result.logits[i : i + 1, :, : -(-height // stride), : -(-width // stride)]
        alone = SemanticSegmenterOutput(logits=own)
        torch.testing.assert_close(
            masks[i], processor.post_process_semantic_segmentation(alone, [sizes[i]])[0]
        )


def test_too_few_target_sizes_are_refused():
    with pytest.raises(ValueError, match="target_sizes has 1 entries for 2 images"):
        SegmentationImageProcessor().post_process_semantic_segmentation(
            outputs(2, 3, 4, 4), target_sizes=[(8, 8)]
        )


@each("orientation", range(1, 9))
def test_masks_of_rotated_photographs_fit_the_file_on_disk(orientation):
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[:4, 4:8] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    processor = SegmentationImageProcessor(do_normalize=False)
    upright = processor(file, return_tensors="pt").pixel_values
    result = SemanticSegmenterOutput(logits=torch.stack([0.5 - upright[:, 0], upright[:, 0]], 1))
    code = processor.read_orientation(file)
    (found,) = processor.post_process_semantic_segmentation(result, [(8, 12)], orientations=[code])
    np.testing.assert_array_equal(found, stored[..., 0] // 255)


def test_a_pil_image_that_is_turned_on_its_side_warns():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(random_image(4, 6)).save(file, "PNG", exif=exif)
    with pytest.warns(UserWarning, match="turned upright"):
        values = SegmentationImageProcessor()(Image.open(file), return_tensors="pt").pixel_values
    assert values.shape[-2:] == (6, 4)


def test_a_colored_mask_is_a_mask_file_and_an_image():
    processor = SegmentationImageProcessor(palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]])
    ids = mask(4, 5)
    image = processor.colorize(torch.from_numpy(ids))
    np.testing.assert_array_equal(image, ids)
    np.testing.assert_array_equal(processor.decode_mask(image), ids)
    np.testing.assert_array_equal(
        LabelMap(palette=processor.palette).decode(np.asarray(image.convert("RGB"))), ids
    )


def test_ids_above_255_cannot_be_colored():
    with pytest.raises(ValueError, match="from 0 to 255, not 0 to 256. Save the mask as 16-bit PNG"):
        colorize(np.array([[0, 256]]))


def test_masks_of_any_number_of_classes_are_drawn():
    ids = np.array([[0, 1], [999, 7]])
    colors = np.asarray(mask_image(ids, class_colors([(1, 2, 3)], 1000), ignore_index=7))
    assert colors[0, 0].tolist() == [1, 2, 3]
    assert colors[0, 1].tolist() == [128, 0, 0]
    assert colors[1, 0].tolist() == default_palette(1000)[999]
    assert colors[1, 1].tolist() == [0, 0, 0]


def test_default_colors_are_all_different_and_start_with_black():
    palette = default_palette()
    assert len({tuple(color) for color in default_palette(1000)}) == 1000
    assert palette[:3] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


@pytest.fixture(scope="module")
def tiny_segformer():
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        sr_ratios=[1] * 4,
        decoder_hidden_size=8,
        num_labels=5,
    )
    return SegformerForSemanticSegmentation(config).eval()


@pytest.mark.parametrize(
    ("batch_size", "size"), [(1, None), (1, {"max_pixels": 900}), (2, {"height": 32, "width": 40})]
)
@both_backends
def test_the_pipeline_segments_images_of_mixed_sizes(tiny_segformer, processor_class, batch_size, size):
    processor = processor_class(size=size)
    segment = pipeline("image-segmentation", model=tiny_segformer, image_processor=processor)
    images = [Image.fromarray(random_image(*shape)) for shape in ((33, 47), (40, 64), (64, 36))]
    for image, segments in zip(images, segment(images, batch_size=batch_size), strict=True):
        with torch.no_grad():
            result = tiny_segformer(**processor(image, return_tensors="pt"))
        (classes,) = processor.post_process_semantic_segmentation(result, [image.size[::-1]])
        for found in segments:
            expected = classes == tiny_segformer.config.label2id[found["label"]]
            np.testing.assert_array_equal(np.asarray(found["mask"]) == 255, expected)
        assert {found["mask"].size for found in segments} == {image.size}


def test_options_of_the_model_reach_the_pipeline_past_the_image_processor(saved):
    for option in ("device_map", "num_labels", "offload_folder", "output_hidden_states"):
        _, options = SegmentationImageProcessor.get_image_processor_dict(
            saved, _from_pipeline="image-segmentation", **{option: "auto", "do_resize": False}
        )
        assert options == {"do_resize": False}


def test_the_colors_of_a_label_map_color_predictions():
    processor = SegmentationImageProcessor(label_map={"#ff0000": 1, "0,0,255": 0, "#000000": "ignore"})
    assert processor.palette == [[0, 0, 255], [255, 0, 0]]
    assert processor.colorize(np.array([[1, 0]])).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@each(
    ("options", "message"),
    [
        ({"image_std": [1, 1, 1, 1]}, "image_std has 4 entries, but do_convert_rgb=True"),
        ({"image_std": [1, 1], "image_mean": [0] * 5, "do_convert_rgb": False}, "5 entries and image_std 2"),
    ],
)
def test_mean_and_deviation_are_for_the_channels_of_the_image(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationImageProcessor(**options)(np.zeros((8, 8, 5), np.uint8), return_tensors="pt")
