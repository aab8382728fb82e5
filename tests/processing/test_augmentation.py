"""Joint augmentation: image and mask stay aligned, and a sample depends on seed, epoch and index alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image
from torch.utils.data import DataLoader

from contextseg.processing.crop_images import DecodedImage
from contextseg.processing.data.augmentation import AugmentedDataset, JointAugmentation
from contextseg.processing.data.color_distortion import PhotometricDistortion
from contextseg.processing.data.crop_plans import CropPlan
from contextseg.processing.data.crop_regions import Region, draw_region, resized_crop_of_mask

COLORS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20]], dtype=np.uint8)
GRAY = (120, 120, 120)


def blocks(height=48, width=64, block=12):
    """An image whose colors encode its mask of random blocks."""
    random = np.random.default_rng(3)
    ids = random.integers(0, 4, (height // block + 1, width // block + 1)).repeat(block, 0).repeat(block, 1)
    mask = np.ascontiguousarray(ids[:height, :width])
    return Image.fromarray(COLORS[mask]), mask


def ids_of(image):
    """The mask that the colors of an image encode; 255 for the color of padding."""
    palette = np.vstack([COLORS, [GRAY]]).astype(int)
    nearest = np.abs(np.asarray(image).astype(int)[:, :, None] - palette).sum(-1).argmin(-1)
    return np.where(nearest == 4, 255, nearest)


def augment(seed, image=None, mask=None, **settings):
    if image is None:
        image, mask = blocks()
    settings = {"crop_size": (40, 40), "use_photometric_distortion": False, "fill": GRAY} | settings
    return JointAugmentation(seed=seed, **settings)(image, mask, epoch=0, index=0)


class Samples:
    """Three samples of one image."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image, mask = blocks()
        return {"image": image, "mask": mask, "name": f"sample {index}"}


@pytest.fixture
def samples():
    return AugmentedDataset(Samples(), JointAugmentation(crop_size=(24, 24), seed=7))


def collate(samples):
    return [(np.asarray(sample["image"]), sample["mask"]) for sample in samples]


def drawn(dataset, epoch, **options):
    """All samples of an epoch, as bytes."""
    dataset.set_epoch(epoch)
    return [
        i.tobytes() + m.tobytes()
        for batch in DataLoader(dataset, collate_fn=collate, **options)
        for i, m in batch
    ]


@each("seed", range(12))
def test_image_and_mask_stay_aligned(seed):
    image, mask = augment(seed)
    agreement = (ids_of(image) == mask).mean()
    assert agreement > 0.9  # only blended pixels at block borders may differ


def test_alignment_is_lost_if_the_mask_is_flipped():
    """The test above can fail."""
    image, mask = augment(0)
    assert (ids_of(image) == mask[:, ::-1]).mean() < 0.8


@each("crop_size", [(40, 40), (16, 90), (7, 5), (200, 200)])
def test_the_result_has_the_size_of_the_crop(crop_size):
    image, mask = augment(0, crop_size=crop_size)
    assert (*image.size[::-1], *mask.shape) == crop_size * 2


def test_a_scaled_image_equals_resizing_the_whole_of_it():
    image, mask = blocks()
    expected = np.asarray(image.resize((96, 72), Image.Resampling.BILINEAR))
    scaled, _ = augment(0, image, mask, crop_size=(72, 96), scale_range=(1.5, 1.5), flip_probability=0)
    np.testing.assert_array_equal(np.asarray(scaled), expected)


def test_a_crop_without_scaling_is_a_part_of_the_image():
    image, mask = blocks()
    numbered = np.arange(48 * 64).reshape(48, 64)
    _, crop = augment(5, image, numbered, crop_size=(20, 20), scale_range=(1, 1), flip_probability=0)
    top, left = divmod(crop[0, 0], 64)
    np.testing.assert_array_equal(crop, numbered[top : top + 20, left : left + 20])


def test_padding_has_the_mean_color_and_is_ignored():
    image, mask = augment(0, crop_size=(80, 80), scale_range=(1, 1))
    assert (mask[48:] == 255).all()
    assert (mask[:, 64:] == 255).all()
    assert (mask[:48, :64] != 255).all()
    assert (np.asarray(image)[mask == 255] == GRAY).all()


def test_crops_of_one_class_are_drawn_again_until_another_one_shows():
    mask = np.zeros((100, 100), dtype=np.int64)
    mask[:, 60:] = 1
    image = Image.fromarray(COLORS[mask])
    crops = [augment(seed, image, mask, crop_size=(20, 20), scale_range=(1, 1))[1] for seed in range(60)]
    assert np.mean([len(np.unique(crop)) == 2 for crop in crops]) > 0.7  # one draw alone: a quarter


def test_an_image_of_one_class_is_taken_as_it_is_after_ten_draws():
    image = Image.new("RGB", (30, 30))
    assert (augment(0, image, np.zeros((30, 30), np.int64), crop_size=(20, 20))[1] == 0).any()


def test_ignored_pixels_do_not_count_as_a_class():
    mask = np.full((40, 40), 255)
    mask[:, 20:] = 1
    region = draw_region(mask.shape, (40, 40), 1.0, np.random.default_rng(0))
    assert not JointAugmentation((40, 40))._is_balanced(mask, region)


@each(("size", "expected"), [((512, 2048), 1.0), ((256, 256), 2.0), ((100, 1024), 2.0)])
def test_the_base_size_is_fitted_with_the_aspect_kept(size, expected):
    assert JointAugmentation((512, 512), base_size=(2048, 512))._base_scale(size) == expected


def test_the_same_seed_epoch_and_index_give_the_same_sample(samples):
    assert drawn(samples, epoch=4) == drawn(samples, epoch=4)


def test_another_epoch_seed_or_index_gives_another_sample(samples):
    other = AugmentedDataset(samples.dataset, replace(samples.augmentation, seed=8))
    assert len({*drawn(samples, epoch=0), *drawn(samples, epoch=1), *drawn(other, epoch=0)}) == 9


def test_several_crops_of_an_image_are_those_of_further_epochs(samples):
    more = AugmentedDataset(samples.dataset, samples.augmentation, crops_per_image=3)
    assert len(more) == 3 * len(samples)
    more.set_epoch(1)
    for crop in range(3):
        samples.set_epoch(3 + crop)
        sample = more[crop * len(samples) + 1]
        np.testing.assert_array_equal(sample["image"], samples[1]["image"])
        np.testing.assert_array_equal(sample["mask"], samples[1]["mask"])


def test_samples_do_not_depend_on_earlier_draws(samples):
    alone = np.asarray(samples[2]["image"])
    torch.rand(5)
    np.testing.assert_array_equal(np.asarray([samples[i]["image"] for i in (0, 1, 2)][2]), alone)


def test_persistent_workers_see_every_new_epoch(samples):
    expected = [drawn(samples, epoch) for epoch in range(3)]
    loader = DataLoader(samples, num_workers=2, persistent_workers=True, collate_fn=collate)
    for epoch in range(3):
        samples.set_epoch(epoch)
        assert [i.tobytes() + m.tobytes() for batch in loader for i, m in batch] == expected[epoch]


def test_colors_change_and_the_mask_does_not():
    image, mask = augment(1, use_photometric_distortion=True)
    plain, plain_mask = augment(1)
    np.testing.assert_array_equal(mask, plain_mask)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(plain)).max() > 5


def test_without_a_draw_colors_stay_as_they_are():
    image, _ = blocks()
    unchanged = PhotometricDistortion(None, None, None, None, is_contrast_first=False)(image)
    np.testing.assert_array_equal(np.asarray(unchanged), np.asarray(image))


def test_brightness_adds_and_contrast_multiplies():
    distorted = PhotometricDistortion(20, 0.5, None, None, False)(Image.new("RGB", (1, 1), (70, 70, 70)))
    assert distorted.getpixel((0, 0)) == (45, 45, 45)


def test_contrast_before_or_after_saturation_differs():
    image = Image.new("RGB", (1, 1), (200, 80, 10))
    results = {
        PhotometricDistortion(None, 1.5, 1.5, None, first)(image).getpixel((0, 0)) for first in (True, False)
    }
    assert len(results) == 2


def test_a_third_of_the_circle_turns_red_to_green():
    red = Image.new("RGB", (1, 1), (200, 0, 0))
    turned = PhotometricDistortion(None, None, None, 1 / 3, is_contrast_first=False)(red).getpixel((0, 0))
    assert turned == pytest.approx((0, 200, 0), abs=4)


def test_no_saturation_leaves_gray():
    pixel = PhotometricDistortion(None, None, 0.0, None, False)(
        Image.new("RGB", (1, 1), (200, 80, 10))
    ).getpixel((0, 0))
    assert len(set(pixel)) == 1


@each("dtype", [np.uint8, np.uint16, np.float32])
@each("rotation", [0, 20])
def test_images_of_many_channels_keep_their_type_and_stay_aligned(dtype, rotation):
    _, mask = blocks()
    channels = np.stack([mask * 30] * 5, axis=-1).astype(dtype)
    image, augmented = augment(2, channels, mask, fill=(0,) * 5, rotation=rotation)
    assert image.dtype == dtype
    valid = augmented != 255
    assert (np.rint(image[valid][:, 0] / 30) == augmented[valid]).mean() > 0.9


def test_contrast_of_channels_stays_in_the_range_of_their_type():
    channels = np.full((8, 8, 2), 250, dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.int64)
    results = [
        augment(
            seed,
            channels,
            mask,
            crop_size=(8, 8),
            scale_range=(1, 1),
            fill=(0, 0),
            use_photometric_distortion=True,
        )[0].max()
        for seed in range(20)
    ]
    assert max(results) == 255
    assert min(results) >= 125


def test_a_fill_of_the_wrong_length_says_how_many_channels_there_are():
    with pytest.raises(ValueError, match="3 values, but the image has 5 channels"):
        augment(0, np.zeros((9, 9, 5), np.uint8), np.zeros((9, 9), np.int64))


def test_the_share_of_a_class_is_one_of_the_labeled_pixels():
    mask = np.full((40, 40), 255)
    mask[:10] = 0
    mask[0, :8] = 1  # 98 % of what is labeled is class 0, but it is a quarter of all pixels
    region = draw_region(mask.shape, (40, 40), 1.0, np.random.default_rng(0))
    assert not JointAugmentation((40, 40))._is_balanced(mask, region)


def test_a_crop_is_balanced_up_to_the_cat_max_ratio_of_a_class():
    region = draw_region((4, 4), (4, 4), 1.0, np.random.default_rng(0))
    mask = np.zeros((4, 4), np.int64)
    assert not JointAugmentation((4, 4), cat_max_ratio=1.0)._is_balanced(mask, region)  # a single class
    mask[0] = 1
    assert JointAugmentation((4, 4), cat_max_ratio=0.75)._is_balanced(mask, region)
    assert not JointAugmentation((4, 4), cat_max_ratio=0.74)._is_balanced(mask, region)
    assert not JointAugmentation((4, 4))._is_balanced(np.full((4, 4), 255), region)


def test_where_one_class_may_fill_a_crop_the_first_one_is_taken_without_reading_labels():
    drawn = JointAugmentation((4, 4), cat_max_ratio=1.0)._draw_balanced_region(
        SimpleNamespace(shape=(40, 40)), np.random.default_rng(0)
    )
    random = np.random.default_rng(0)
    assert drawn == draw_region((40, 40), (4, 4), random.uniform(0.5, 2.0), random)


def test_padding_has_the_ignore_index_that_is_set():
    _, mask = augment(0, crop_size=(80, 80), scale_range=(1, 1), ignore_index=7)
    assert (mask[48:] == 7).all()


def test_a_new_pixel_has_the_id_under_its_centre():
    region = Region(top=0, left=0, height=1, width=6, size=(1, 2))
    assert resized_crop_of_mask(np.arange(6)[None], region).tolist() == [[1, 4]]


def test_colors_are_distorted_within_the_published_ranges_and_in_both_orders():
    drawn = [PhotometricDistortion.draw(np.random.default_rng(seed)) for seed in range(400)]
    bounds = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in bounds.items():
        values = [value for one in drawn if (value := getattr(one, name)) is not None]
        assert 150 < len(values) < 250
        margin = (high - low) / 20
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high
    assert 150 < sum(one.is_contrast_first for one in drawn) < 250


def test_small_crops_are_judged_by_all_their_pixels():
    mask = np.ones((20, 20), np.int64)
    mask[:, ::5] = 0
    region = draw_region(mask.shape, (20, 20), 1.0, np.random.default_rng(0))
    assert JointAugmentation((20, 20), cat_max_ratio=0.85)._is_balanced(mask, region)


def test_the_hue_is_a_circle():
    picture = Image.new("HSV", (1, 1), (250, 255, 255)).convert("RGB")
    shifted = PhotometricDistortion(None, None, None, 0.1, False)(picture)
    assert abs(shifted.convert("HSV").getpixel((0, 0))[0] - 20) <= 2  # 250 + 26 of 256


def test_a_sample_counted_from_the_end_is_the_same_sample(samples):
    np.testing.assert_array_equal(samples[-1]["mask"], samples[2]["mask"])
    np.testing.assert_array_equal(np.asarray(samples[-1]["image"]), np.asarray(samples[2]["image"]))


UPRIGHT = {"scale_range": (1, 1), "flip_probability": 0}


@each("seed", range(12))
@each("kind", [Image.Image, np.ndarray])
def test_image_and_mask_stay_aligned_when_rotated(seed, kind):
    image, mask = blocks()
    image = image if kind is Image.Image else np.array(image)
    turned, ids = augment(seed, image, mask, rotation=45)
    assert ids.shape == (40, 40)
    assert (ids_of(turned) == ids).mean() > 0.85  # only blended pixels at block borders may differ


def quarter_turn(image, mask, size):
    """The augmented crop of an image whose random angle is set to 90 degrees."""
    region = Region(10, 20, 12, 16, size=(12, 16))
    crop = CropPlan(region, 90.0, False, None, size, GRAY, 255).cut(DecodedImage(image), mask)
    return np.asarray(crop["image"]), crop["mask"]


def test_a_quarter_turn_is_that_of_numpy_around_the_center_of_the_crop():
    image, _ = blocks()
    numbered = np.arange(48 * 64).reshape(48, 64)
    pixels, ids = quarter_turn(image, numbered, (12, 16))
    around = slice(8, 24), slice(22, 34)  # 16 x 12 pixels with the same center
    np.testing.assert_array_equal(ids, np.rot90(numbered[around]))
    np.testing.assert_array_equal(pixels, np.rot90(np.asarray(image)[around]))


def test_a_crop_inside_the_image_has_no_padding_when_rotated_and_corners_outside_are_ignored():
    mask = np.random.default_rng(0).integers(0, 3, (200, 200))
    image = Image.fromarray(COLORS[mask])
    small = [augment(seed, image, mask, crop_size=(20, 20), rotation=180, **UPRIGHT)[1] for seed in range(40)]
    assert sum((ids == 255).any() for ids in small) < 20  # those at the border of the image
    pixels, whole = augment(0, image, mask, crop_size=(200, 200), rotation=180, **UPRIGHT)
    assert 0.02 < (whole == 255).mean() < 0.3
    assert (np.asarray(pixels)[0, 0] == GRAY).all()


def test_without_rotation_every_draw_is_that_of_before():
    image, mask = blocks()
    plain, none = augment(3, image, mask), augment(3, image, mask, rotation=0)
    turned = augment(3, image, mask, rotation=1e-9)
    assert np.array_equal(plain[0], none[0])
    assert np.array_equal(plain[1], turned[1])


@each("scale_range", [(5e-324, 1), (0, 1), (2, 1), (1, float("inf")), (float("nan"), 1)])
def test_impossible_resize_factors_are_refused(scale_range):
    with pytest.raises(ValueError, match="not a range of resize factors"):
        JointAugmentation((8, 8), scale_range=scale_range)


@each("rotation", [-1, 181, float("nan")])
def test_an_impossible_angle_is_refused(rotation):
    with pytest.raises(ValueError, match="not an angle from 0 to 180 degrees"):
        JointAugmentation((8, 8), rotation=rotation)
