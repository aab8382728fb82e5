"""Handwritten digits as a folder of images with labels, for training without a network: scikit-learn's, enlarged.

python tests/digits.py data/digits    # train/0..9 with 1437 images, val/0..9 with the 360 that scikit-learn has last
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

VALIDATED = 360


def write_digits(folder, size=32, count=None):
    """Writes train/ (its first `count` images) and val/."""
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    for split, chosen in (("train", numbers[:-VALIDATED][:count]), ("val", numbers[-VALIDATED:])):
        for number in chosen:
            place = Path(folder) / split / str(digits.target[number])
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8))
            image.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{number:04}.png")


if __name__ == "__main__":
    write_digits(sys.argv[1])
