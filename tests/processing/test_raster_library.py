"""Image processors without the library, as in a repository on the Hub, and files that it would read as rasters."""

import numpy as np
import pytest
from PIL import Image

from contextseg import SegmentationImageProcessor
from contextseg.processing import raster_library
from contextseg.processing.image_reading import read_image
from contextseg.processing.mask_reading import read_mask

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture
def _without_library(monkeypatch):
    monkeypatch.setattr(raster_library, "LIBRARY", "contextseg_that_is_missing")


@pytest.mark.usefixtures("_without_library")
def test_pictures_and_masks_are_read_without_the_library(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "image.tif")
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "mask.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "image.tif")), PIXELS)
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), PIXELS[..., 0])


@pytest.mark.usefixtures("_without_library")
def test_what_needs_the_library_says_so():
    with pytest.raises(ImportError, match=r"mosaic\.vrt.*pip install contextseg"):
        read_image("mosaic.vrt")
    with pytest.raises(ImportError, match="cutting crop pairs needs the contextseg library"):
        SegmentationImageProcessor().crop_pairs(PIXELS, [(0, 0, 2, 2)], context_ratio=2)
