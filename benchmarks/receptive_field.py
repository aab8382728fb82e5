"""The pixels that a logit of GLAM-Swin-Unet can depend on without global attention.

Positions are then mixed only by windows, patch merging, patch expansion and skip connections, all of which
treat rows and columns separately. So the view of a logit is a rectangle, and one axis is enough to compute
it. Shifted windows wrap around the border. Swin masks pixels that are adjacent only because of the cyclic
shift, but global tokens are not masked, so views wrap around as well. For networks without tokens these views
are an upper bound.

Legend: S pixels along one axis, N patches or cells along it.
"""

import numpy as np

from ..configuration.configuration_glam_swin import GlamSwinConfig


def axis_view(config: GlamSwinConfig, side: int) -> np.ndarray:
    """-> (S, S) bool: whether the logits of a row (or column) can see another one, for `side` = S pixels.

    The logit at (r, c) can see pixel (p, q) if and only if `view[r, p]` and `view[c, q]`. Raises ValueError
    if `side` is not a multiple of the windows of the coarsest stage.
    """
    cell = config.patch_size * 2 ** (len(config.depths) - 1) * config.window_size
    if side % cell:
        raise ValueError(f"size={side} does not divide into whole windows. Pass a multiple of {cell}.")
    seen = np.eye(side, dtype=bool)
    seen = gathered(seen, config.patch_size)
    skips = []
    for stage, depth in enumerate(config.depths):
        if stage:
            seen = gathered(seen, 2)
        skips.append(seen)
        seen = through_blocks(seen, depth, config.window_size)
    for depth, skip in zip(config.depths[-2::-1], skips[-2::-1], strict=True):
        seen = through_blocks(seen.repeat(2, axis=0) | skip, depth, config.window_size)
    return seen.repeat(config.patch_size, axis=0)


def through_blocks(seen: np.ndarray, depth: int, window: int) -> np.ndarray:
    """(N, S) -> (N, S) after alternating regular and shifted windows, whose cells share their views."""
    for block in range(depth):
        shift = window // 2 if block % 2 else 0
        shared = gathered(np.roll(seen, -shift, axis=0), window).repeat(window, axis=0)
        seen = np.roll(shared, shift, axis=0)
    return seen


def gathered(seen: np.ndarray, step: int) -> np.ndarray:
    """(N, S) -> (N / step, S): `step` neighbors become one cell with the union of their views."""
    return seen.reshape(-1, step, seen.shape[1]).any(axis=1)


def reach(view: np.ndarray) -> int:
    """(S, S) -> the largest distance in pixels from a logit to a pixel in its view, which wraps around."""
    side = len(view)
    apart = np.abs(np.arange(side)[:, None] - np.arange(side))
    return int(np.minimum(apart, side - apart)[view].max())


def sees_box(view: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """(S, S) view and a box of the image -> (S, S) bool: the pixels whose logits can see part of the box."""
    rows, columns = (view[:, part].any(axis=1) for part in box)
    return rows[:, None] & columns
