"""Plots of a run and of an evaluation: loss and score curves, and the confusion matrix.

Legend: K classes.
"""

import textwrap
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..processing.atomic_write import atomic_write
from ..processing.fonts import drawable, font_file
from ..processing.legends import NAME_LENGTH
from ..processing.plain_text import one_line
from .records import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)  # ticks of the color bar
FEW_CLASSES = 25  # up to this many classes, the cells of a confusion matrix show numbers
PLOT_INTERVAL = 30.0  # seconds
MAX_CLASSES = 150  # the matrix of more classes would not be readable
LOSS_COLOR, LOSS_TINT, SCORE_COLOR = "#2b5c9e", "#b8c4d6", "#c2571a"


class CurvePlot:
    """`loss.png` of a run, beside its `log.jsonl`.

    Args:
        log: The log.
        score: Key of the score to draw.
        name: Its name in the plot.
    """

    def __init__(self, log: Path, score: str, name: str) -> None:
        self.log, self.score, self.name = log, score, name
        self.drawn = time.monotonic()

    def draw(self, at_once: bool = False) -> None:
        """Draws the curves, at most every 30 seconds unless `at_once`, since drawing takes time."""
        if self.log.exists() and (at_once or time.monotonic() - self.drawn > PLOT_INTERVAL):
            plot_curves(read_log(self.log), self.log.with_name("loss.png"), self.score, self.name)
            self.drawn = time.monotonic()


def plot_curves(
    entries: Sequence[Mapping[str, float]], path: Path, score: str = "mean_iou", name: str = "mIoU"
) -> None:
    """Plots the training loss and a validation score over steps; the highest score is marked.

    Args:
        entries: Entries of a `log.jsonl`, see `read_log`.
        path: Image file to write. It is not written if there is neither a loss nor a score.
        score: Key of the score in the entries, a fraction. Default: "mean_iou".
        name: Name of the score in the plot. Default: "mIoU".
    """
    from matplotlib.figure import Figure

    losses, scores = curve(entries, "loss"), curve(entries, score, 100)
    if not losses and not scores:
        return
    figure = Figure(figsize=(7, 4))
    figure.subplots_adjust(left=0.1, right=0.9, bottom=0.14, top=0.9)
    axes = figure.add_subplot()
    axes.set(xlabel="step")
    axes.spines[["top", "right"]].set_visible(False)
    lines = []
    if losses:
        axes.plot(*zip(*losses, strict=True), color=LOSS_TINT, linewidth=1)
        lines += axes.plot(*zip(*smoothed(losses), strict=True), color=LOSS_COLOR, label="training loss")
        axes.set_ylim(min(0, *(loss for _, loss in losses)), None)
        axes.set_ylabel("training loss", color=LOSS_COLOR)
    if scores:
        right = axes.twinx()
        step, best = max(scores, key=lambda point: point[1])
        label = f"{name}, best {best:.2f} % at step {step}"
        lines += right.plot(
            *zip(*scores, strict=True), color=SCORE_COLOR, marker="o", markersize=4, label=label
        )
        right.plot(step, best, color=SCORE_COLOR, marker="o", markersize=9, fillstyle="none")
        right.set_ylim(0, 100)
        right.set_ylabel(f"{name} on the validation set, %", color=SCORE_COLOR)
        right.spines["top"].set_visible(False)
    figure.legend(handles=lines, frameon=False, loc="upper center", ncols=2)
    write_figure(figure, path)


def curve(entries: Sequence[Mapping[str, float]], key: str, factor: float = 1) -> list[tuple[float, float]]:
    """(step, value) of the entries with a finite number under this key."""
    points = [(entry["step"], entry.get(key)) for entry in entries]
    return [(step, factor * value) for step, value in points if value is not None and isfinite(value)]


def write_figure(figure: "Figure", path: Path) -> None:
    """Writes a PNG file; it is never left incomplete."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path, title: str = "") -> None:
    """Plots a confusion matrix, normalized by row. The row of a class without labeled pixels is gray.

    The figure grows with the number of classes, so that their names remain readable. Of more than 150
    classes, it shows those with the most labeled pixels.

    Args:
        counts: (K, K) numbers of pixels by label (rows) and prediction (columns).
        names: Class names by id.
        path: Image file to write.
        title: Text above the matrix, such as its scores. Default: none.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    pixels = counts.sum(1, keepdims=True)
    shares = np.divide(counts, pixels, out=np.full(counts.shape, np.nan), where=pixels > 0)
    shown = np.sort(np.argsort(-pixels[:, 0], kind="stable")[:MAX_CLASSES])
    shares, labels = (
        shares[np.ix_(shown, shown)],
        [drawable(one_line(names[index], NAME_LENGTH)) for index in shown],
    )
    is_small = len(shown) <= FEW_CLASSES
    cell, font = (0.5, 8) if is_small else (0.11, 6)  # inches, points
    side = max(4.0, cell * len(shown) + 2.5)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    # The square root makes small shares visible.
    image = axes.imshow(shares, cmap="viridis", norm=PowerNorm(0.5, 0, 1))
    axes.set_xticks(range(len(shown)), labels, rotation=90, parse_math=False)
    axes.set_yticks(range(len(shown)), labels, parse_math=False)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_fontproperties(FontProperties(fname=font_file(tick.get_text()), size=font))
    rest = "" if len(shown) == len(names) else f", the {len(shown)} most frequent of {len(names)} classes"
    axes.set(xlabel="predicted", ylabel=f"labeled{rest}")
    axes.set_title(textwrap.fill(title, round(11 * side)), fontsize=10, parse_math=False)
    if is_small:
        write_shares(axes, shares, font)
    figure.colorbar(image, label="share of the labeled pixels", shrink=min(1.0, 5 / side), ticks=SHARES)
    write_figure(figure, path)


def write_shares(axes: "Axes", shares: np.ndarray, font: int) -> None:
    """Writes the percentage into each cell, unless it rounds to 0."""
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        ink = "black" if share > 0.5 else "white"
        axes.text(column, row, f"{100 * share:.0f}", color=ink, fontsize=font, ha="center", va="center")


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.05) -> list[tuple[float, float]]:
    """Moving average of (step, value) points; the window reaches `share` of the curve to each side."""
    steps, values = zip(*points, strict=True)
    reach = max(1, round(share * len(points)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(points))
    near = np.minimum.reduce([at, at[::-1], np.full_like(at, reach)])
    return list(zip(steps, (sums[at + near + 1] - sums[at - near]) / (2 * near + 1), strict=True))
