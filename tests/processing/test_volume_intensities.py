"""Changes of intensities against those of scipy, and which image each of them takes."""

import numpy as np
import pytest
from cases import each

from contextseg.processing.volumes.volume_augmentation import VolumeAugmentation
from contextseg.processing.volumes.volume_intensities import blur, change_gamma
from contextseg.processing.volumes.volume_preparation import normalize_channel

ndimage = pytest.importorskip("scipy.ndimage")
VALUES = np.random.default_rng(0).normal(size=(7, 8, 9)).astype(np.float32) ** 2
NEVER = {name: 0.0 for name in VolumeAugmentation.__dataclass_fields__ if name.endswith("_probability")}


@each("deviation", [0.5, 0.6, 0.9, 1.0])
def test_blur_is_that_of_scipy(deviation):
    expected = ndimage.gaussian_filter(VALUES, deviation, mode="nearest")
    np.testing.assert_allclose(blur(VALUES, deviation), expected, atol=1e-6)


@each(
    ("name", "expected"),
    {
        "plain": ("gamma_probability", change_gamma(VALUES, 2.0)),
        "inverted": ("inverted_gamma_probability", -change_gamma(-VALUES, 2.0)),
    },
)
def test_gamma_is_that_of_the_plain_and_of_the_inverted_image(name, expected):
    augmentation = VolumeAugmentation(**{**NEVER, name: 1.0}, gamma_range=(2.0, 2.0), mirrored_axes=())
    place = {"spacing": (1, 1, 1), "ignore_index": 255, "random": np.random.default_rng(0)}
    labels = np.zeros(VALUES.shape, dtype=np.int16)
    found, _ = augmentation.cut(VALUES[None], labels, (0, 0, 0), VALUES.shape, **place)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_the_z_score_of_a_body_leaves_zeros_around_it():
    body, channel = VALUES > 0.5, VALUES.copy()
    normalize_channel(channel, "zscore", None, body)
    assert not channel[~body].any()
    np.testing.assert_allclose((channel[body].mean(), channel[body].std()), (0, 1), atol=1e-5)
