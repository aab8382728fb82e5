"""Masks of training crops: all values are checked once, then only the rows that a crop needs are decoded."""

import os

import numpy as np
import pytest
from cases import each
from PIL import Image

from contextseg.processing import png_decoding
from contextseg.processing.crop_images import encoded_image
from contextseg.processing.data.augmentation import JointAugmentation
from contextseg.processing.data.datasets import SegmentationFolder
from contextseg.processing.data.windowed_pairs import EncodedLabels
from contextseg.processing.mask_reading import read_mask
from contextseg.processing.png_decoding import decoded_png

COLORS = [(128, 64, 128), (70, 70, 70), (220, 20, 60)]
IDS = np.repeat(np.random.default_rng(0).integers(0, 3, (12, 5), dtype=np.uint8), 8, axis=0).repeat(8, axis=1)
IDS[:40] = 0  # so that the colors of the first rows do not tell those of all


def palette_mask(order):
    image = Image.fromarray(IDS)
    image.putpalette(np.array(COLORS, np.uint8)[order].tobytes())
    return image


MASKS = {
    "gray": Image.fromarray(IDS),
    "16 bits": Image.fromarray(IDS.astype(np.uint16)),
    "1 bit": Image.fromarray(IDS > 0),
    "palette": palette_mask([0, 1, 2]),
    "palette in another order": palette_mask([2, 0, 1]),
    "colors": Image.fromarray(np.array(COLORS, np.uint8)[IDS]),
}


def saved_pair(folder, mask, suffix="png"):
    for part in ("images", "masks"):
        (folder / part).mkdir(exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 256, (*IDS.shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / f"one.{suffix}")
    mask.save(folder / "masks" / "one.png")
    table = {"classes": ["a", "b", "c"], "palette": COLORS}
    (folder / "classes.json").write_text(str(table).replace("'", '"').replace("(", "[").replace(")", "]"))
    return SegmentationFolder(folder)


@each("mask", MASKS)
@each("package", ["imagecodecs", None])
def test_crops_of_masks_that_were_checked_are_those_of_whole_masks(mask, package, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png_decoding, "imagecodecs", package and png_decoding.imagecodecs)
        data = saved_pair(tmp_path, mask)
        for options in ({}, {"context_ratio": 2, "fill": (124.0, 116.0, 104.0)}):
            augmentation = JointAugmentation((16, 16), **options)
            for epoch in range(3):
                found, expected = (
                    augmentation.crop(sample, epoch=epoch, index=0) for sample in (data.windowed(0), data[0])
                )
                for name in ("image", "mask"):
                    np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]))


def test_a_mask_is_decoded_whole_once_and_then_down_to_the_crop(tmp_path):
    data = saved_pair(tmp_path, MASKS["gray"])
    assert not isinstance(data.windowed(0)["mask"], EncodedLabels)
    labels = data.windowed(0)["mask"]
    for rows, decoded in ((range(20), 20), (range(15), 20), (range(30), 96)):
        labels(np.array(rows)[:, None], np.arange(9)[None])
        assert len(labels.mask) == decoded


def test_palette_masks_whose_colors_are_classes_are_always_decoded_whole(tmp_path):
    data = saved_pair(tmp_path, MASKS["palette in another order"])
    assert not any(isinstance(data.windowed(0)["mask"], EncodedLabels) for _ in range(3))


def test_a_checked_mask_that_changes_is_checked_again(tmp_path):
    data = saved_pair(tmp_path, MASKS["gray"])
    file = tmp_path / "masks" / "one.png"
    data.windowed(0)
    times, changed = file.stat(), IDS.copy()
    changed[-1, -1] = 77
    Image.fromarray(changed).save(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"values that are not in label_map: 77"):
            data.windowed(0)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"one\.png' cannot be decoded"):
        data.windowed(0)


@each("mode", ["RGB", "L"])
def test_png_files_are_decoded_to_pillows_pixels_or_left_to_pillow(mode, tmp_path):
    pytest.importorskip("imagecodecs")
    path = tmp_path / "image.png"
    MASKS["colors"].convert(mode).save(path)
    data, file = path.read_bytes(), encoded_image(path, read_mask, 1 << 30)
    np.testing.assert_array_equal(decoded_png(data), read_mask(path))
    np.testing.assert_array_equal(file.quickly_decoded(50), read_mask(path)[:50])
    for left in (data[:40] + data[44:], data[: len(data) // 2], b"", data[:24] + b"\x10" + data[25:]):
        assert decoded_png(left) is None
