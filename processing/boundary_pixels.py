"""Which pixels of a label map are near a boundary between classes, and near one of another label map.

Memory does not grow with the number of classes.

Legend: H, W image axes, N boundary pixels; `ids` are integer class ids.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

COMPARED_AT_ONCE = 1 << 22  # pairs of a boundary pixel and a neighbor
DENSE = 1 / 4  # share of boundary pixels above which comparing whole images is faster


def contour(ids: Tensor) -> Tensor:
    """(H, W) -> (H, W) bool: whether one of the four neighbors inside the image has another id."""
    edge = torch.zeros_like(ids, dtype=torch.bool)
    differs = ids[1:] != ids[:-1]
    edge[1:] |= differs
    edge[:-1] |= differs
    differs = ids[:, 1:] != ids[:, :-1]
    edge[:, 1:] |= differs
    edge[:, :-1] |= differs
    return edge


def within(edges: Tensor, others: Tensor, distance: float, void: int) -> Tensor:
    """Two (H, W) -> (H, W) bool: which boundary pixels have one of their class in `others` in reach.

    Args:
        edges: Class ids of boundary pixels, `void` elsewhere.
        others: The same for the other boundaries.
        distance: Reach in pixels, Euclidean.
        void: Id of all pixels that are not on a boundary.
    """
    reach = math.floor(distance)
    edges, others = edges.to(torch.int16), F.pad(others.to(torch.int16), [reach] * 4, value=void)
    candidates = torch.isin(edges, others[others != void].unique())
    if candidates.count_nonzero() > DENSE * candidates.numel():
        return within_by_image(edges, others, distance) & candidates
    matched = torch.zeros_like(candidates)
    matched[candidates] = within_by_pixel(edges, others, candidates, distance)
    return matched


def within_by_image(edges: Tensor, others: Tensor, distance: float) -> Tensor:
    """(H, W) and the others (H + 2 r, W + 2 r) -> (H, W) bool: compares whole images, one per neighbor."""
    height, width = edges.shape
    matched = torch.zeros_like(edges, dtype=torch.bool)
    is_equal = torch.empty_like(matched)
    for row, column in steps_within(distance).tolist():
        torch.eq(edges, others[row : row + height, column : column + width], out=is_equal)
        matched |= is_equal
    return matched


def within_by_pixel(edges: Tensor, others: Tensor, candidates: Tensor, distance: float) -> Tensor:
    """As `within_by_image`, but for the N candidates alone -> (N,) bool.

    Neighbors are compared from the nearest on. Pixels that have found one drop out, so most are compared only
    a few times.
    """
    flat, wanted = others.flatten(), edges[candidates]
    rows, columns = candidates.nonzero(as_tuple=True)
    places = rows * others.shape[1] + columns
    rows, columns = steps_within(distance).to(edges.device).unbind(1)
    offsets = rows * others.shape[1] + columns
    missing = torch.arange(len(places), device=edges.device)
    hit = torch.zeros(len(places), dtype=torch.bool, device=edges.device)
    start, step = 0, 1
    while start < len(offsets) and len(missing):
        seen = flat[places[missing, None] + offsets[start : start + step]]  # (N, step)
        is_hit = (seen == wanted[missing, None]).any(1)
        hit[missing[is_hit]] = True
        missing = missing[~is_hit]
        start += step
        step = max(1, min(2 * step, COMPARED_AT_ONCE // max(1, len(missing))))
    return hit


def steps_within(distance: float) -> Tensor:
    """-> (steps, 2): rows and columns from the corner of the square around a pixel to all within `distance`."""
    reach = math.floor(distance)
    square = torch.cartesian_prod(*[torch.arange(2 * reach + 1)] * 2)
    lengths = (square - reach).square().sum(1)
    inside = lengths <= distance**2
    return square[inside][lengths[inside].argsort(stable=True)]


def boundary(ids: Tensor, radius: int) -> Tensor:
    """(H, W) -> (H, W) bool: whether another id or the image border is within `radius` rows and columns."""
    padded = F.pad(ids.to(torch.int16), [radius] * 4, value=-1)
    lowest, highest = padded, padded
    for axis in (-2, -1):
        lowest = running(torch.minimum, lowest, 2 * radius + 1, axis)
        highest = running(torch.maximum, highest, 2 * radius + 1, axis)
    return lowest != highest


def running(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor, length: int, axis: int) -> Tensor:
    """(..., N, ...) -> (..., N - length + 1, ...): running minimum or maximum, in log2(length) steps."""
    covered = 1
    while covered < length:
        shift = min(covered, length - covered)
        kept = values.shape[axis] - shift
        values = combine(values.narrow(axis, 0, kept), values.narrow(axis, shift, kept))
        covered += shift
    return values
