"""Changes hue and saturation of RGB pixels as a conversion to HSV and back does, without the rounding between.

In HSV, a pixel has its largest channel as value, the distance to the smallest one as chroma, and its place on a
hexagon as hue: each channel is 1 within a sixth of the circle around its own color, 0 within a sixth around the
opposite one, and linear between, as a share of the chroma above the smallest channel. Legend: h, w pixels.
"""

import numpy as np

ROWS = 64  # at a time, so that all arrays of a step stay in the cache
FOLDS = (3, 5, 1)  # of red, green and blue: the hue in sixths around which two halves of the circle are alike
HALF, ONE, TWO, THREE = map(np.float32, (0.5, 1, 2, 3))


def change_hue_and_saturation(planes: np.ndarray, hue: float, saturation: float) -> np.ndarray:
    """Turns the hue and scales the saturation of an image.

    Args:
        planes: (3, h, w) RGB, uint8.
        hue: Turn of the hue in circles, from -1/6 to 1/6.
        saturation: Factor of the saturation, which is clipped to 1.

    Returns:
        (3, h, w) RGB, uint8.
    """
    changed = np.empty_like(planes)
    for first in range(0, planes.shape[1], ROWS):
        part = slice(first, first + ROWS)
        _change(planes[:, part], changed[:, part], np.float32(6 * hue), np.float32(saturation))
    return changed


def _change(planes: np.ndarray, changed: np.ndarray, sixths: np.float32, saturation: np.float32) -> None:
    largest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    old = largest - np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    value, divisor = largest.astype(np.float32), old.astype(np.float32)
    chroma = divisor * saturation
    np.minimum(chroma, value, out=chroma)
    np.maximum(divisor, ONE, out=divisor)  # gray has no hue
    value += HALF  # bytes are cut off, not rounded
    if sixths:
        _change_both(changed, value, chroma, _hue_times_chroma(planes, largest, old) / divisor + sixths)
        return
    chroma /= divisor
    for plane, result in zip(planes, changed, strict=True):
        below = (largest - plane).astype(np.float32)
        below *= chroma
        np.subtract(value, below, out=below)
        result[:] = below


def _change_both(changed: np.ndarray, value: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> None:
    """Fills `changed` from the hue in sixths, the chroma and the value, to which a half is added."""
    value += chroma
    channel = np.empty_like(value)
    for fold, result in zip(FOLDS, changed, strict=True):
        np.subtract(hue, np.float32(fold), out=channel)
        np.abs(channel, out=channel)
        channel -= THREE
        np.abs(channel, out=channel)  # from the hue to the color of the channel, in sixths
        np.clip(channel, ONE, TWO, out=channel)
        channel *= chroma
        np.subtract(value, channel, out=channel)
        result[:] = channel


def _hue_times_chroma(planes: np.ndarray, largest: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """(h, w) float32: the hue, in sixths from -1 (magenta) over 0 (red) to 5, times the chroma."""
    red, green, blue = planes.astype(np.int16)
    chroma = chroma.astype(np.int16)
    place = red - green + 4 * chroma
    np.copyto(place, blue - red + 2 * chroma, where=planes[1] == largest)
    np.copyto(place, green - blue, where=planes[0] == largest)
    return place.astype(np.float32)
