"""Checks the pairs of a dataset: the report of `contextseg-check`, and the check at the start of training."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from ..failures import telling
from ..label_maps import EQUAL_CHANNELS, NO_LABEL, LabelMap
from ..plain_text import one_line
from ..progress import progress as progress_of
from ..value_ranges import StoredValues
from .datasets import SegmentationData
from .inspection import Finding, inspect_pair
from .pairing import listed

THREADS = min(8, os.cpu_count() or 1)  # decoding releases the GIL
RARE_SHARE = 0.001
DOUBTS = {  # what may be wrong with pairs
    "turned": "images are turned upright by their EXIF orientation, which their masks do not have. Check that these "
    "masks fit the upright images",
    "turned mask": "masks are turned upright by an EXIF orientation that their images do not have. Check that the "
    "upright masks fit these images",
    "frames": "images have several frames, of which only the first is used",
    "transparent": "masks have transparent pixels, which get the class of their id or color all the same. If they have "
    "no label, fill them with the ignore index or an ignored color",
    "inverted": "masks are TIFF files of 1 bit in which 0 is shown white; 0 and 1 are read as stored. Check that white is "
    "class 0",
    "other colors": "palette masks have none of the colors of the classes, so their indices are used as ids. Check that "
    "index and class agree, or give the classes the colors of the masks",
}


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
        unknown_ranges: Name -> values of the images whose black and white are unknown.
        lost_values: Name -> values of the images of which hardly any gray levels are left as they are read.
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
    unknown_ranges: dict[str, StoredValues] = field(default_factory=dict)
    lost_values: dict[str, StoredValues] = field(default_factory=dict)
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
        lines = [f"{self.name}: {self.num_samples} pairs{checked}", f"sizes    {sizes_text(self.sizes)}"]
        labeled = sum(self.pixels.values())
        ignored = self.ignored_pixels / max(1, labeled + self.ignored_pixels)
        lines += [f"ignored  {100 * ignored:.2f} % of the pixels", "", *self.class_lines(), ""]
        lines += [f"PROBLEM  {text}" for text in self.problems] + [
            f"warning  {text}" for text in self.warnings
        ]
        return "\n".join(lines + ([] if self.problems else ["ready to train"]))

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


def sizes_text(sizes: Counter) -> str:
    """Counts of (height, width): all sizes if there are at most three, otherwise their range."""
    if not sizes:
        return "unknown"
    if len(sizes) <= 3:
        return ", ".join(f"{width}x{height} ({n})" for (height, width), n in sizes.most_common())
    heights, widths = zip(*sizes, strict=True)
    return (
        f"{len(sizes)} sizes, width {min(widths)} to {max(widths)}, height {min(heights)} to {max(heights)}"
    )


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
    if not isinstance(dataset, SegmentationData):
        raise TypeError(
            f"check_data got a {type(dataset).__name__}. Give it the dataset that open_data(SOURCE) returns."
        )
    report = CheckReport(name, dataset.classes, len(dataset), skip_unreadable)
    report.problems += getattr(getattr(dataset, "pairing", None), "problems", [])
    count = len(dataset) if sample is None else min(sample, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    state = f"{{}} of {count} pairs of {name} were checked. Run the command again.".format
    with (
        telling(lambda: state(report.num_checked)),
        closing(in_threads(inspect_pair, dataset, indices)) as found,
    ):
        for finding in with_progress(found, count, progress):
            add_finding(report, finding, dataset.decoder)
    conclude(report, dataset)
    return report


def in_threads(inspect: Callable[[Any, int], Any], dataset: Any, indices: list[int]) -> Iterator[Any]:
    """`inspect(dataset, index)` for each index, in order; files are decoded by several threads."""
    threads = ThreadPoolExecutor(THREADS)
    try:
        yield from threads.map(lambda index: inspect(dataset, index), indices)
    finally:
        threads.shutdown(cancel_futures=True)


def with_progress(items: Iterable[Finding], count: int, progress: bool) -> Iterable[Finding]:
    return progress_of(items, total=count, unit="pair", desc="checking") if progress else items


def add_finding(report: CheckReport, finding: Finding, decoder: LabelMap) -> None:
    """Adds the counts of one pair to the report."""
    report.num_checked += 1
    if finding.contradiction:
        report.contradictions.append(finding.contradiction)
    if finding.values:
        (report.unknown_ranges if finding.unreadable else report.lost_values)[finding.name] = finding.values
    elif finding.unreadable:
        report.unreadable.append(finding.unreadable)
    if finding.pixels_by_id is None:
        return
    for doubt in finding.doubts:
        report.doubts.setdefault(doubt, []).append(finding.name)
    report.sizes[finding.size] += 1
    if finding.mismatch:
        report.mismatches.append(finding.mismatch)
    add_pixels(report, finding, decoder)


def add_pixels(report: CheckReport, finding: Finding, decoder: LabelMap) -> None:
    """Adds the pixels of one mask to those of its classes."""
    known = decoder.colors if finding.is_colored else decoder.ids
    shown = set()
    counts = dict(finding.pixels_by_id)
    report.ignored_pixels += counts.pop(NO_LABEL, 0)
    for value, pixels in counts.items():
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
            f"{len(report.mismatches)} masks do not fit their image: " + " ".join(report.mismatches[:3])
        )
    if report.contradictions:
        report.problems.append(
            f"{len(report.contradictions)} palette masks are ambiguous: "
            + " ".join(report.contradictions[:3])
        )
    if report.unknown_ids:
        report.problems.append(unknown_ids_text(report))
    report.warnings += [
        f"{len(names)} {DOUBTS[doubt]}: {listed(names)}." for doubt, names in report.doubts.items()
    ]
    add_range_findings(report, dataset)
    add_class_findings(report, dataset)
    report.warnings += share_warnings(report)


def add_range_findings(report: Any, dataset: Any) -> None:
    """Adds that black and white of the images are unknown, or not those of their pixels, and the option to pass."""
    if report.unknown_ranges:
        values = reduce(StoredValues.joined, report.unknown_ranges.values())
        report.problems.append(
            f"{len(report.unknown_ranges)} images ({listed(list(report.unknown_ranges))}) have {values.kind} values from "
            f"{values.low:.6g} to {values.highest:.6g}, and it is unknown which of them are black and white. "
            f"Pass {values.option()}."
        )
    if 2 * len(report.lost_values) > report.num_checked:
        values = reduce(StoredValues.joined, report.lost_values.values())
        black, white = dataset.value_range or (0, 65535)
        has_outliers = values.highest > values.suggestion()[1]
        outliers = f" (but for outliers up to {values.highest:.6g})" if has_outliers else ""
        report.warnings.append(
            f"{len(report.lost_values)} of {report.num_checked} images have {values.kind} values from {values.low:.6g} to "
            f"{values.high if has_outliers else values.highest:.6g}{outliers}, but are read with {black:.6g} as black and {white:.6g} as white, so that hardly any "
            f"gray levels are left. Pass {values.option()}."
        )


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
    warnings = [counted(absent, "class never occurs", "classes never occur")] if absent else []
    if rare:
        warnings.append(
            f"{counted(rare, 'class is rare', 'classes are rare')} --class-weights auto or --loss cross_entropy+dice may "
            "help."
        )
    return warnings


def counted(names: list[str], one: str, several: str) -> str:
    """Number of the names, what is said of one or of several, and the names themselves."""
    return f"{len(names)} {one if len(names) == 1 else several}: {listed(names)}."
