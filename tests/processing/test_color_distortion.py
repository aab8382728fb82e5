"""Hue and saturation change as in HSV, each pixel rounded once."""

import colorsys

import numpy as np
from cases import each
from PIL import Image

from contextseg.processing.data.color_distortion import PhotometricDistortion
from contextseg.processing.data.hue_saturation import ROWS, change_hue_and_saturation

PIXELS = np.random.default_rng(0).integers(0, 256, (3, ROWS + 6, 6), dtype=np.uint8)
PIXELS[:, 0] = PIXELS[:1, 0]  # gray
PIXELS[:2, 1] = 255  # two largest channels


@each("hue", [0, 0.07, -0.1, 1 / 6])
@each("saturation", [1, 0.5, 1.5, 0])
def test_hue_and_saturation_change_as_in_hsv(hue, saturation):
    changed = change_hue_and_saturation(PIXELS, hue, saturation)
    expected = []
    for pixel in PIXELS.reshape(3, -1).T / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v))
    np.testing.assert_allclose(changed.reshape(3, -1).T, np.multiply(expected, 255), atol=0.501)


def test_pictures_arrays_and_planes_get_the_same_colors():
    change = PhotometricDistortion(20, 1.2, 0.7, 0.05, is_contrast_first=False)
    planes = change.change_colors(PIXELS)
    picture = change(Image.fromarray(np.moveaxis(PIXELS, 0, -1)))
    array = change.change_array(np.moveaxis(PIXELS, 0, -1).astype(np.float32))
    np.testing.assert_array_equal(np.asarray(picture), np.moveaxis(planes, 0, -1))
    np.testing.assert_array_equal(array, np.asarray(picture))
    assert not (planes == PIXELS).all()
