"""Local and context crops of scaled and turned squares against those of the authors of relay tokens."""

from math import atan2, degrees

import numpy as np
import pytest
from golden_cases import golden_cases

from contextseg.processing.crop_frames import Frame
from contextseg.processing.crop_images import DecodedImage
from contextseg.processing.pair_cutting import cut_pair
from contextseg.processing.rasters.label_windows import LabelArray

CASES = [case for case in golden_cases("relay") if case.id == "none" or case.values[0].kind == "crops"]
INTERPOLATED = 1e-3  # by OpenCV, where a square is scaled or turned


def frame_of(square):
    """The frame of a square. That of the authors begins at its leftmost corner, so the stored axes tell the angle."""
    (x, y), (end_x, end_y) = (square["crop_frame"][name] for name in ("origin", "x_axis_end"))
    angle, side = degrees(atan2(end_y - y, end_x - x)), square["side"]
    return Frame.of_box(square["y0"], square["x0"], side, side, angle=angle)


def within(frame, size, sides):
    """(h, w): whether the four pixels around each sample lie in an image of these sides."""
    rows, columns = (places - 0.5 for places in frame.positions((size, size), "point"))
    return (rows >= 0) & (rows <= sides[0] - 1) & (columns >= 0) & (columns <= sides[1] - 1)


@pytest.mark.parametrize("case", CASES)
def test_crop_pairs_are_those_of_the_authors(case):
    given, tensors = case.description["constructor"], {k: v.numpy() for k, v in case.tensors.items()}
    size, ratio = given["crop_pixels"], given["extent_ratio"]
    mean, std = (np.array(given[name], dtype=np.float32) for name in ("mean", "std"))
    image = DecodedImage(np.moveaxis(tensors["in.image"], 0, -1))
    labels = LabelArray(tensors["in.labels"], 255)
    for place, square in enumerate(given["squares"]):
        frame = frame_of(square)
        options = {"context_ratio": ratio, "fill": mean, "ignore_index": 255, "sampling": "point"}
        pair = cut_pair(image, labels, frame, (size, size), **options)
        for name, view, crop in (("local", frame, "image"), ("global", frame.context(ratio), "context")):
            ours = np.moveaxis((pair[crop] - mean) / std, -1, 0)
            apart = np.abs(ours - tensors[f"out.{name}"][place]).max(0)
            compared = True if square["exact"] else within(view, size, image.shape)
            assert (apart * compared).max() <= (case.tolerance if square["exact"] else INTERPOLATED)
        np.testing.assert_array_equal(pair["valid"], tensors["out.outside_mask"][place] == 0)
        np.testing.assert_array_equal(pair["mask"] == 255, tensors["out.labels_local"][place] == 255)
        if square["exact"]:
            np.testing.assert_array_equal(pair["mask"], tensors["out.labels_local"][place])
