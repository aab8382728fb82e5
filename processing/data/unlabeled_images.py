"""A folder of images without masks, for training that needs none: its samples have the one class "image".

Samples are those of `SegmentationData`, whose mask says where the image has pixels, so that crops, contexts and
windowed reading are the same as with masks.
"""

from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ..crop_images import RasterImage
from ..image_files import image_files
from ..image_reading import image_size
from ..rasters.files import unlabeled_pixels
from ..rasters.windowed_files import windowed_image
from ..samples import scale_of
from .class_table import ClassTable
from .datasets import Reading, SegmentationData
from .pairing import Pair, contents

IMAGES = "images"  # the folder of images in a folder for segmentation


class UnlabeledImages(SegmentationData):
    """The images below a folder, or below its `images/` if it has one.

    Args:
        path: The folder.
        **reading: How images are read, see `Reading`.

    Raises:
        ValueError: If there is no such folder, or it has no images.
    """

    def __init__(self, path: str | Path, **reading: Unpack[Reading]) -> None:
        super().__init__(ClassTable(["image"]), **reading)
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"'{path}' is not a folder. Give a folder of images.")
        self.path = folder / IMAGES if (folder / IMAGES).is_dir() else folder
        self.files = image_files(self.path)
        if not self.files:
            raise ValueError(f"'{self.path}' has no images; it holds {contents(self.path)}. Check the path.")

    def __len__(self) -> int:
        return len(self.files)

    def sources(self, index: int) -> Pair:
        """The file of an image, and its name; there is no mask."""
        return Pair(self.files[index], None, self.name_of(index))

    def name_of(self, index: int) -> str:
        """The name of an image in messages."""
        return self.files[index].relative_to(self.path).as_posix()

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        image = self.read_image(file)
        mask = everywhere(image_size(image))
        if (missing := unlabeled_pixels(file, self.num_channels)) is not None:
            mask = np.where(missing, self.ignore_index, mask)
        return {"image": image, "mask": mask, "name": self.name_of(index), **scale_of(image)}

    def windowed(self, index: int) -> dict[str, Any]:
        """As `self[index]`, but the image is not decoded if its file can be read by windows."""
        image = windowed_image(self.files[index], self.num_channels, self.read_image)
        if not isinstance(image, RasterImage):
            return self[index]
        return {"image": image, "mask": everywhere(image.shape), "name": self.name_of(index)}


def everywhere(size: tuple[int, int]) -> np.ndarray:
    """(H, W) zeros, the one class, that take no memory."""
    return np.broadcast_to(np.int64(0), size)
