"""Checks the pairs of a dataset: the report of `contextseg-check`, and the check at the start of training."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..failures import reason, telling
from ..image_opening import read_frames, read_orientation
from ..image_reading import image_size
from ..label_maps import EQUAL_CHANNELS, LabelMap
from ..orientation import UPRIGHT, swaps_sides
from ..palette_masks import PaletteError
from ..plain_text import one_line
from ..progress import progress as progress_of
from .datasets import SegmentationData, check_sizes
from .pairing import Pair, listed

THREADS = min(8, os.cpu_count() or 1)  # decoding releases the GIL
RARE_SHARE = 0.001
FEW_VALUES = 1 << 16
DOUBTS = {
    "turned": "are turned upright by their EXIF orientation, which their masks do not have. Check that these masks "
    "fit the upright images",
    "frames": "have several frames, of which only the first is used",
}


class Finding(NamedTuple):
    """The size and the ids of one pair, or why it cannot be used; `doubts` may be wrong with it."""

    name: str
    size: tuple[int, int] | None = None
    pixels_by_id: dict[int, int] | None = None
    is_colored: bool = False
    unreadable: str | None = None
    mismatch: str | None = None
    contradiction: str | None = None
    doubts: tuple[str, ...] = ()


@dataclass
class CheckReport:
    """The findings of `check_data` for a dataset.

    Args:
        name: Name of the dataset in the report.
        classes: Class names.
        num_samples: Number of pairs in the dataset.
        skip_unreadable: Whether unreadable pairs are warnings rather than problems.
        num_checked: Number of pairs that were read.
        sizes: (height, width) in pixels -> number of images.
        pixels: Class id -> number of pixels.
        images: Class id -> number of images that contain the class.
        ignored_pixels: Number of pixels with the ignore index.
        stored_ids: Id in the files, or "#rrggbb" -> number of pixels.
        unknown_ids: Id or color without a class -> name of the first pair that contains it.
        unreadable: Error messages of pairs that cannot be read.
        mismatches: Error messages of masks whose size differs from their image.
        contradictions: Error messages of palette masks whose indices and colors contradict each other.
        doubts: Key of `DOUBTS` -> names of the pairs.
        problems: What would stop or break training.
        warnings: What may reduce the quality of the trained model.
    """

    name: str
    classes: list[str]
    num_samples: int
    skip_unreadable: bool = False
    num_checked: int = 0
    sizes: Counter = field(default_factory=Counter)
    pixels: Counter = field(default_factory=Counter)
    images: Counter = field(default_factory=Counter)
    ignored_pixels: int = 0
    stored_ids: Counter = field(default_factory=Counter)
    unknown_ids: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    doubts: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every pair was read."""
        return self.num_checked == self.num_samples

    def shares(self) -> list[float]:
        """Each class's fraction of the labeled pixels, from 0 to 1."""
        total = max(1, sum(self.pixels.values()))
        return [self.pixels[index] / total for index in range(len(self.classes))]

    def as_dict(self) -> dict[str, Any]:
        """The report as values that JSON can store."""
        rows = zip(self.classes, self.shares(), strict=True)
        return {
            "data": self.name,
            "samples": self.num_samples,
            "checked": self.num_checked,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.sizes.most_common()],
            "classes": [
                {"index": i, "name": name, "pixels": self.pixels[i], "share": share, "images": self.images[i]}
                for i, (name, share) in enumerate(rows)
            ],
            "ignored_pixels": self.ignored_pixels,
            "stored_ids": {str(stored): pixels for stored, pixels in self.stored_ids.items()},
            "unreadable": self.unreadable,
            "size_mismatches": self.mismatches,
            "problems": self.problems,
            "warnings": self.warnings,
        }

    def text(self) -> str:
        """The report as plain text: sizes, a table of classes, problems and warnings."""
        checked = "" if self.is_complete else f", {self.num_checked} of them checked"
        lines = [f"{self.name}: {self.num_samples} pairs{checked}", f"sizes    {self.sizes_text()}"]
        labeled = sum(self.pixels.values())
        ignored = self.ignored_pixels / max(1, labeled + self.ignored_pixels)
        lines += [f"ignored  {100 * ignored:.2f} % of the pixels", "", *self.class_lines(), ""]
        lines += [f"PROBLEM  {text}" for text in self.problems] + [
            f"warning  {text}" for text in self.warnings
        ]
        return "\n".join(lines + ([] if self.problems else ["ready to train"]))

    def sizes_text(self) -> str:
        """All sizes with their counts if there are at most three, otherwise their range."""
        if not self.sizes:
            return "unknown"
        if len(self.sizes) <= 3:
            return ", ".join(f"{width}x{height} ({n})" for (height, width), n in self.sizes.most_common())
        heights, widths = zip(*self.sizes, strict=True)
        return f"{len(self.sizes)} sizes, width {min(widths)} to {max(widths)}, height {min(heights)} to {max(heights)}"

    def class_lines(self) -> list[str]:
        """The lines of a table of classes, each with a bar for its share."""
        names = [one_line(name) for name in self.classes]
        width = max(len(name) for name in [*names, "class"])
        lines = [f"{'':>3}  {'class':<{width}}  {'pixels':>7}  {'images':>6}"]
        for index, (name, share) in enumerate(zip(names, self.shares(), strict=True)):
            bar = "█" * round(30 * share)
            lines.append(
                f"{index:>3}  {name:<{width}}  {100 * share:>5.2f} %  {self.images[index]:>6}  {bar}".rstrip()
            )
        return lines


def check_data(
    dataset: SegmentationData,
    sample: int | None = None,
    *,
    name: str = "data",
    progress: bool = False,
    skip_unreadable: bool = False,
) -> CheckReport:
    """Reads pairs of images and masks, and reports sizes, class shares, unknown ids and errors.

    Bad files do not raise an error; they are listed in the report.

    Args:
        dataset: Dataset from `open_data`.
        sample: Number of evenly spaced pairs to read. None reads all.
        name: Name of the dataset in the report.
        progress: Whether to show a progress bar.
        skip_unreadable: Whether unreadable pairs are warnings rather than problems.

    Returns:
        The report. `problems` would stop or break training, `warnings` may reduce the quality of the trained
        model; `text()` and `as_dict()` give the whole report.
    """
    report = CheckReport(name, dataset.classes, len(dataset), skip_unreadable)
    report.problems += getattr(getattr(dataset, "pairing", None), "problems", [])
    count = len(dataset) if sample is None else min(sample, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    state = f"{{}} of {count} pairs of {name} were checked. Run the command again.".format
    with telling(lambda: state(report.num_checked)), closing(findings(dataset, indices)) as found:
        for finding in with_progress(found, count, progress):
            add_finding(report, finding, dataset.decoder)
    conclude(report, dataset)
    return report


def findings(dataset: SegmentationData, indices: list[int]) -> Iterator[Finding]:
    """One finding per index, in order; files are decoded by several threads."""
    threads = ThreadPoolExecutor(THREADS)
    try:
        yield from threads.map(lambda index: inspect_pair(dataset, index), indices)
    finally:
        threads.shutdown(cancel_futures=True)


def with_progress(items: Iterable[Finding], count: int, progress: bool) -> Iterable[Finding]:
    return progress_of(items, total=count, unit="pair", desc="checking") if progress else items


def inspect_pair(dataset: SegmentationData, index: int) -> Finding:
    """Reads an image and its mask; errors become part of the finding."""
    name = f"{index}"
    try:
        pair = dataset.sources(index)
        name = pair.name
        size = image_size(dataset.read_image(pair.image))
        mask = dataset.read_stored_mask(pair.mask)
        finding = Finding(name, size, count_values(mask), mask.ndim == 3)
    except PaletteError as error:
        return Finding(name, contradiction=str(error))
    except Exception as error:
        return Finding(name, unreadable=reason(error, name))
    try:
        check_sizes(size, mask.shape[:2], name)
    except ValueError as error:
        return finding._replace(mismatch=str(error))
    return finding._replace(doubts=tuple(doubts_of(pair, size)))


def doubts_of(pair: Pair, size: tuple[int, int]) -> Iterator[str]:
    """The keys of `DOUBTS` that apply to a pair of equal sizes."""
    turn = read_orientation(pair.image)
    fits_unturned = size[0] == size[1] or not swaps_sides(turn)
    if turn != UPRIGHT and fits_unturned and read_orientation(pair.mask) != turn:
        yield "turned"
    if read_frames(pair.image) > 1:
        yield "frames"


def count_values(mask: np.ndarray) -> dict[int, int]:
    """(H, W) ids or (H, W, 3) colors -> number of pixels by id or by 0xRRGGBB."""
    if mask.ndim == 3:
        red, green, blue = np.moveaxis(mask.astype(np.int32), -1, 0)
        mask = red << 16 | green << 8 | blue
    if mask.min() >= 0 and mask.max() < FEW_VALUES:
        counts = np.bincount(mask.ravel())
        return {int(value): int(counts[value]) for value in counts.nonzero()[0]}
    return {int(value): int(count) for value, count in zip(*np.unique(mask, return_counts=True), strict=True)}


def add_finding(report: CheckReport, finding: Finding, decoder: LabelMap) -> None:
    """Adds the counts of one pair to the report."""
    report.num_checked += 1
    if finding.contradiction:
        report.contradictions.append(finding.contradiction)
    if finding.unreadable:
        report.unreadable.append(finding.unreadable)
    if finding.pixels_by_id is None:
        return
    for doubt in finding.doubts:
        report.doubts.setdefault(doubt, []).append(finding.name)
    report.sizes[finding.size] += 1
    if finding.mismatch:
        report.mismatches.append(finding.mismatch)
    count_classes(report, finding, decoder)


def count_classes(report: CheckReport, finding: Finding, decoder: LabelMap) -> None:
    """Adds the pixels of one mask to those of its classes."""
    known = decoder.colors if finding.is_colored else decoder.ids
    shown = set()
    for value, pixels in finding.pixels_by_id.items():
        stored = f"#{value:06x}" if finding.is_colored else str(value)
        report.stored_ids[stored] += pixels
        if value not in known:
            report.unknown_ids.setdefault(stored, finding.name)
        elif known[value] == decoder.ignore_index:
            report.ignored_pixels += pixels
        else:
            report.pixels[known[value]] += pixels
            shown.add(known[value])
    report.images.update(shown)


def conclude(report: CheckReport, dataset: SegmentationData) -> None:
    """Derives problems and warnings from the counts."""
    if report.unreadable:
        place = report.warnings if report.skip_unreadable else report.problems
        place.append(f"{len(report.unreadable)} unreadable: " + " ".join(report.unreadable[:3]))
    if report.mismatches:
        report.problems.append(
            f"{len(report.mismatches)} masks differ in size from their image: "
            + " ".join(report.mismatches[:3])
        )
    if report.contradictions:
        report.problems.append(
            f"{len(report.contradictions)} palette masks are ambiguous: "
            + " ".join(report.contradictions[:3])
        )
    if report.unknown_ids:
        report.problems.append(unknown_ids_text(report))
    report.warnings += [
        f"{len(names)} images {DOUBTS[doubt]}: {listed(names)}." for doubt, names in report.doubts.items()
    ]
    add_class_findings(report, dataset)
    report.warnings += share_warnings(report)


def add_class_findings(report: CheckReport, dataset: SegmentationData) -> None:
    """Adds what is wrong with the classes as a whole."""
    certain = report.problems if report.is_complete else report.warnings  # unread masks may contain other ids
    if set(report.stored_ids) <= {"0", "255"} and "255" in report.stored_ids and dataset.label_map is None:
        certain.append(
            "the masks contain only 0 and 255, and 255 is ignored. If 255 is the object, add to "
            'classes.json: "label_map": {"0": 0, "255": 1}; if it is unlabeled: "label_map": {"0": 0, "255": "ignore"}.'
        )
    elif report.num_checked and not report.pixels:
        certain.append(
            "no pixel has a class, so there is nothing to learn. Check the masks and classes.json."
        )
    if len(report.classes) == 1:
        report.problems.append(
            f"there is only one class, {report.classes[0]}, so there is nothing to tell apart. Add a class for "
            'the rest, for example {"classes": ["rest", "object"], "label_map": {"255": 0, "0": 1}}.'
        )
    elif len(report.pixels) == 1 and report.is_complete:
        report.warnings.append(
            f"only one class, {report.classes[next(iter(report.pixels))]}, occurs in the masks, so there is nothing "
            "to tell apart. Check whether the ignored pixels are a class of their own."
        )


def unknown_ids_text(report: CheckReport) -> str:
    """Lists the values without a class, with their counts and the first mask that contains them."""
    values = sorted(report.unknown_ids, key=lambda stored: -report.stored_ids[stored])
    hint = f" Note: {EQUAL_CHANNELS}" if all(is_equal_channels(value) for value in report.stored_ids) else ""
    shown = [f"{v} ({report.stored_ids[v]} pixels, first in '{report.unknown_ids[v]}')" for v in values]
    return (
        f"the masks contain {len(values)} values without a class in classes.json: {listed(shown)}. "
        f'Add their classes there, or map them to "ignore" in "label_map".{hint}'
    )


def is_equal_channels(stored: str) -> bool:
    """Whether this is a color "#rrggbb" with equal red, green and blue."""
    return stored.startswith("#") and stored[1:3] == stored[3:5] == stored[5:7]


def share_warnings(report: CheckReport) -> list[str]:
    """Warnings about absent and rare classes; none for a sample, in which absence says little."""
    if not report.is_complete or not report.pixels:
        return []
    shares = dict(zip(report.classes, report.shares(), strict=True))
    absent = [name for name, share in shares.items() if share == 0]
    rare = [f"{name} ({100 * share:.3f} %)" for name, share in shares.items() if 0 < share < RARE_SHARE]
    warnings = [f"{len(absent)} classes never occur: {listed(absent)}."] if absent else []
    if rare:
        warnings.append(
            f"{len(rare)} classes are rare: {listed(rare)}. --class-weights auto or --loss cross_entropy+dice may help."
        )
    return warnings
