"""Plots of a run and of an evaluation: loss and score curves, and the confusion matrix.

Legend: K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)  # ticks of the color bar
FEW_CLASSES = 25  # up to this many classes, the cells of a confusion matrix show numbers


def plot_curves(entries: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plots training loss and validation mIoU over steps.

    Args:
        entries: Entries of a `log.jsonl`, see `read_log`.
        path: Image file to write.
    """
    from matplotlib.figure import Figure

    losses = [(entry["step"], entry["loss"]) for entry in entries if entry.get("loss") is not None]
    scores = [
        (entry["step"], 100 * entry["mean_iou"]) for entry in entries if entry.get("mean_iou") is not None
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*losses, strict=True), color="#b8c4d6", linewidth=1)
    axes.plot(*zip(*smoothed(losses), strict=True), color="#2b5c9e", label="loss")
    axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    lines = axes.get_lines()[1:]
    if scores:
        right = axes.twinx()
        lines += right.plot(
            *zip(*scores, strict=True), color="#c2571a", marker="o", markersize=4, label="mIoU"
        )
        right.set(ylabel="mIoU on the validation set, %", ylim=(0, 100))
        right.spines["top"].set_visible(False)
    axes.legend(handles=lines, frameon=False, loc="center right")
    figure.savefig(path, dpi=150, format="png")


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Plots a confusion matrix, normalized by row. The row of a class without labeled pixels is gray.

    The figure grows with the number of classes, so that their names remain readable.

    Args:
        counts: (K, K) numbers of pixels by label (rows) and prediction (columns).
        names: Class names by id.
        path: Image file to write.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    pixels = counts.sum(1, keepdims=True)
    shares = np.divide(counts, pixels, out=np.full(counts.shape, np.nan), where=pixels > 0)
    cell, font = (0.5, 8) if len(names) <= FEW_CLASSES else (0.11, 6)  # inches, points
    side = max(4.0, cell * len(names) + 2.5)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    image = axes.imshow(
        shares, cmap="viridis", norm=PowerNorm(0.5, 0, 1)
    )  # square root, to make small shares visible
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=font)
    axes.set_yticks(ticks, names, fontsize=font)
    axes.set(xlabel="predicted", ylabel="labeled")
    if len(names) <= FEW_CLASSES:
        for row, column in np.argwhere(shares > 0):
            share = shares[row, column]
            ink = "black" if share > 0.5 else "white"
            axes.text(column, row, f"{100 * share:.0f}", color=ink, fontsize=font, ha="center", va="center")
    figure.colorbar(image, label="share of the labeled pixels", shrink=min(1.0, 5 / side), ticks=SHARES)
    figure.savefig(path, dpi=150, format="png")


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.05) -> list[tuple[float, float]]:
    """Moving average of (step, value) points; the window reaches `share` of the curve to each side."""
    steps, values = zip(*points, strict=True)
    reach = max(1, round(share * len(points)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(points))
    near = np.minimum.reduce([at, at[::-1], np.full_like(at, reach)])
    return list(zip(steps, (sums[at + near + 1] - sums[at - near]) / (2 * near + 1), strict=True))
