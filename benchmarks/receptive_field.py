"""Which pixels of the image a logit of GLAM-Swin-Unet can depend on when no global attention carries anything further.

Everything that mixes places is then a window, a merging or expansion of patches, or a skip connection, and each of
these treats the rows and the columns of the image apart. So the view of a logit is a rectangle, and one axis is enough.
Shifted windows wrap around the border. Swin masks what only the wrapping brought together, but global tokens are no
pixels and are not masked, so views wrap around as well; for networks without tokens they are an upper bound.

Legend: S pixels along one axis, N patches or cells along it.
"""

import numpy as np

from ..configuration.configuration_glam_swin import GlamSwinConfig


def axis_view(config: GlamSwinConfig, side: int) -> np.ndarray:
    """-> (S, S) bool: whether the logits of a row (or column) can see another row, in an image of `side` pixels.

    The logit at (r, c) can see pixel (p, q) exactly when both view[r, p] and view[c, q].
    """
    cell = config.patch_size * 2 ** (len(config.depths) - 1) * config.window_size
    if side % cell:
        raise ValueError(f"size={side} is not cut into whole windows. Pass a multiple of {cell}.")
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
    """(N, S) -> (N, S) after blocks of regular and shifted windows in turn: who shares a window shares its view."""
    for block in range(depth):
        shift = window // 2 if block % 2 else 0
        shared = gathered(np.roll(seen, -shift, axis=0), window).repeat(window, axis=0)
        seen = np.roll(shared, shift, axis=0)
    return seen


def gathered(seen: np.ndarray, step: int) -> np.ndarray:
    """(N, S) -> (N / step, S): `step` neighbours become one cell that sees what any of them saw."""
    return seen.reshape(-1, step, seen.shape[1]).any(axis=1)


def reach(view: np.ndarray) -> int:
    """(S, S) -> the most pixels between a logit and what it can see, around the border where that is shorter."""
    side = len(view)
    apart = np.abs(np.arange(side)[:, None] - np.arange(side))
    return int(np.minimum(apart, side - apart)[view].max())


def sees_box(view: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """(S, S) and a box of the image -> (S, S) bool: the pixels whose logits can see some of the box."""
    rows, columns = (view[:, part].any(axis=1) for part in box)
    return rows[:, None] & columns
