"""To which size an image goes."""

from contextseg.processing.resize_rules import resized_size


def test_within_a_number_of_pixels_no_side_is_longer_than_the_aspect_allows():
    for height, width in ((100, 150), (151, 100), (997, 13), (64, 64)):
        new_height, new_width = resized_size(height, width, {"max_pixels": 5000})
        scale = min(1.0, (5000 / (height * width)) ** 0.5)
        assert height * scale - 1 < new_height <= height * scale
        assert width * scale - 1 < new_width <= width * scale
