"""Looks up the labels of masks of 8-bit ids, which most masks are, without a wider copy of the mask."""

from collections.abc import Collection, Mapping

import numpy as np

MOST_GAPS = 4  # of unknown values that are compared one by one
BLOCK = 1 << 17  # pixels, which stay in the cache


def look_up_bytes(mask: np.ndarray, labels: Mapping[int, int]) -> np.ndarray | None:
    """Looks up the label of each id.

    Args:
        mask: Ids (H, W), uint8.
        labels: Label of each known id.

    Returns:
        The labels (H, W), uint8 if all of them fit, else int64; the mask itself if its ids are the labels. None if an
        id of the mask has no label.
    """
    labels = {value: label for value, label in labels.items() if 0 <= value <= 255}
    if has_others(mask, labels):
        return None
    if all(value == label for value, label in labels.items()):
        return mask
    if all(0 <= label <= 255 for label in labels.values()):
        table = bytes(labels.get(value, 0) for value in range(256))
        return np.frombuffer(mask.tobytes().translate(table), np.uint8).reshape(mask.shape)
    return np.array([labels.get(value, 0) for value in range(256)], np.int64)[mask]


def has_others(mask: np.ndarray, known: Collection[int]) -> bool:
    """Whether a mask (H, W), uint8, has a value that is not one of the known ones, all of which are bytes."""
    edges = [-1, *sorted(known), 256]
    gaps = [(low + 1, high - 1) for low, high in zip(edges, edges[1:], strict=False) if high - low > 1]
    if len(gaps) > MOST_GAPS:
        return bool(set(values_in(mask)) - set(known))
    blocks = np.array_split(mask.reshape(-1), -(-mask.size // BLOCK) or 1)
    return any(
        (block - np.uint8(first) <= np.uint8(last - first)).any() for block in blocks for first, last in gaps
    )


def values_in(mask: np.ndarray) -> list[int]:
    """The different values of a mask (H, W) of integers, sorted; those that begin a run of equal pixels are looked at."""
    flat = mask.reshape(-1)
    return np.unique(np.append(flat[:-1][flat[1:] != flat[:-1]], flat[-1])).tolist()
