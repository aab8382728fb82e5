"""Checks the cases of a data set of volumes: the report of `contextseg-check`."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..failures import reason, telling
from ..plain_text import counted, one_line
from ..progress import progress as progress_of
from .pairing import listed
from .report import RARE_SHARE, CheckReport
from .report import counted as counted_names
from .volume_datasets import VolumeData, count_ids, unknown_ids
from .volume_statistics import spread

THREADS = min(4, os.cpu_count() or 1)  # each holds a volume
SHOWN = 5  # error messages in the text
Sides = tuple[int, int, int]
Triple = tuple[float, float, float]


class CaseFinding(NamedTuple):
    """What one case holds, or why it cannot be used."""

    name: str
    size: Sides | None = None
    spacing: Triple | None = None
    ids: Counter[int] | None = None
    unreadable: str | None = None
    constant: tuple[int, ...] = ()  # channels with one value


@dataclass
class VolumeReport(CheckReport):
    """The findings of `check_volumes`; `pixels` are voxels, and `images` cases.

    Args:
        regions: Name of a region -> indices of its classes. With regions, these are listed in place of the classes.
        channels: Names of the channels, or their numbers.
        spacings: Millimeters between voxels along (D, H, W) -> number of cases; `sizes` has three sides, too.
        grids: Size and spacing of each case that was read.
        constant: Name of a case -> channels that have a single value.
        region_cases: Name of a region -> number of cases with a voxel of it.
        plan: What `contextseg-train` would do, in lines. Default: unknown.
        origin: The file with the classes, for messages. Default: none.
    """

    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)
    spacings: Counter = field(default_factory=Counter)
    grids: list[tuple[Sides, Triple]] = field(default_factory=list)
    constant: dict[str, tuple[int, ...]] = field(default_factory=dict)
    region_cases: Counter = field(default_factory=Counter)
    plan: list[str] = field(default_factory=list)
    origin: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Name, voxels, share of the labeled voxels, and cases of each class; or of the background and each region."""
        shares, total = self.shares(), max(1, sum(self.pixels.values()))
        rows = [
            {"index": i, "name": name, "pixels": self.pixels[i], "share": share, "images": self.images[i]}
            for i, (name, share) in enumerate(zip(self.classes, shares, strict=True))
        ]
        if not self.regions:
            return rows
        of_regions = []
        for name, classes in self.regions.items():
            voxels = sum(self.pixels[index] for index in classes)
            cases = self.region_cases[name]
            of_regions.append(
                {
                    "classes": list(classes),
                    "name": name,
                    "pixels": voxels,
                    "share": voxels / total,
                    "images": cases,
                }
            )
        covered = set().union(*self.regions.values())
        return [row for row in rows if row["index"] not in covered] + of_regions

    def as_dict(self) -> dict[str, Any]:
        """The report as values that JSON can store; sizes and spacings are along slices, rows and columns."""
        return {
            "data": self.name,
            "samples": self.num_samples,
            "checked": self.num_checked,
            "sizes": [{"size": list(size), "images": n} for size, n in self.sizes.most_common()],
            "spacings": [{"spacing": list(steps), "images": n} for steps, n in self.spacings.most_common()],
            "channels": self.channels,
            "classes": self.rows(),
            "ignored_pixels": self.ignored_pixels,
            "stored_ids": dict(self.stored_ids),
            "unreadable": self.unreadable,
            "problems": self.problems,
            "warnings": self.warnings,
            "plan": self.plan,
        }

    def text(self) -> str:
        """The report as plain text: sizes, spacings, a table of classes, problems, warnings, and the plan."""
        checked = "" if self.is_complete else f", {self.num_checked} of them checked"
        labeled = sum(self.pixels.values())
        ignored = self.ignored_pixels / max(1, labeled + self.ignored_pixels)
        names = ", ".join(one_line(name) for name in self.channels)
        lines = [
            f"{one_line(self.name)}: {counted(self.num_samples, 'case', 'cases')}{checked}",
            f"channels {len(self.channels)}: {names}",
            f"sizes    {range_text(self.sizes)} voxels (slices, rows, columns)",
            f"spacings {range_text(self.spacings)} mm",
            f"ignored  {100 * ignored:.2f} % of the voxels",
            "",
            *self.class_lines(),
            "",
        ]
        lines += [f"PROBLEM  {text}" for text in self.problems]
        lines += [f"warning  {text}" for text in self.warnings]
        if self.problems:
            return "\n".join(lines)
        return "\n".join([*lines, *(f"plan     {text}" for text in self.plan), "ready to train"])

    def class_lines(self) -> list[str]:
        """The lines of a table of classes or regions, each with a bar for its share."""
        rows = self.rows()
        names = [one_line(row["name"]) for row in rows]
        width = max(len(name) for name in [*names, "class"])
        lines = [f"{'':>3}  {'class':<{width}}  {'voxels':>9}  {'cases':>6}"]
        for name, row in zip(names, rows, strict=True):
            bar, number = "█" * round(30 * row["share"]), row.get("index", "")
            share = f"{100 * row['share']:>7.3f} %"
            lines.append(f"{number:>3}  {name:<{width}}  {share}  {row['images']:>6}  {bar}".rstrip())
        return lines


def range_text(counts: Counter) -> str:
    """ "20x32x36 (2 cases)", or of several "min 18x30x30, median 20x32x36, max 24x40x36", each axis by itself."""
    if not counts:
        return "unknown"
    if len(counts) == 1:
        return _times(next(iter(counts)))
    values = np.asarray(list(counts.elements()), dtype=float)
    parts = (("min", values.min(0)), ("median", np.median(values, axis=0)), ("max", values.max(0)))
    return ", ".join(f"{name} {_times(sides)}" for name, sides in parts)


def check_volumes(
    data: VolumeData, sample: int | None = None, *, name: str = "data", progress: bool = False
) -> VolumeReport:
    """Reads cases, and reports sizes, spacings, voxels of each class, unknown ids and errors.

    Bad files do not raise an error; they are listed in the report.

    Args:
        data: Data from `open_volume_data(SOURCE, needs_all_pairs=False)`.
        sample: Number of evenly spaced cases to read. None reads all.
        name: Name of the data in the report.
        progress: Whether to show a progress bar.

    Returns:
        The report. `problems` would stop or break training, `warnings` may reduce the quality of the trained model.
    """
    channels = list(data.channel_names) or [f"channel {number}" for number in range(data.num_channels)]
    report = VolumeReport(
        name, data.classes, len(data), regions=data.regions, channels=channels, origin=data.origin
    )
    report.problems += data.problems
    report.warnings += data.warnings
    indices = spread(len(data), sample)
    state = f"{{}} of {len(indices)} cases of {name} were checked. Run the command again.".format
    threads = ThreadPoolExecutor(THREADS)
    try:
        with telling(lambda: state(report.num_checked)):
            found = threads.map(lambda index: inspect_case(data, index), indices)
            total = {"total": len(indices), "unit": "case", "desc": "checking"}
            for finding in progress_of(found, **total) if progress else found:
                add_case(report, finding, data)
    finally:
        threads.shutdown(cancel_futures=True)
    conclude(report)
    return report


def inspect_case(data: VolumeData, index: int) -> CaseFinding:
    """Reads the image and the label of a case; errors become part of the finding."""
    name = data.name(index)
    try:
        image = data.read_image(index)
        constant = tuple(k for k, values in enumerate(image.values) if values.min() == values.max())
        grid = image.geometry
        size, spacing = image.size, tuple(float(f"{side:.6g}") for side in image.spacing)
        del image
        found = CaseFinding(name, size, spacing, constant=constant)
        if data.case(index).label is None:
            return found
        return found._replace(ids=count_ids(data.read_stored_label(index, grid)))
    except Exception as error:  # what is wrong with one file does not stop the check
        return CaseFinding(name, unreadable=reason(error, name))


def add_case(report: VolumeReport, finding: CaseFinding, data: VolumeData) -> None:
    """Adds the counts of one case to the report."""
    report.num_checked += 1
    if finding.unreadable:
        report.unreadable.append(one_line(finding.unreadable))
        return
    report.sizes[finding.size] += 1
    report.spacings[finding.spacing] += 1
    report.grids.append((finding.size, finding.spacing))
    if finding.constant:
        report.constant[finding.name] = finding.constant
    shown = set()
    for key, voxels in (finding.ids or {}).items():
        report.stored_ids[str(key)] += voxels
        label = data.decoder.ids.get(key)
        if label is None:
            report.unknown_ids.setdefault(str(key), finding.name)
        elif label == data.ignore_index:
            report.ignored_pixels += voxels
        else:
            report.pixels[label] += voxels
            shown.add(label)
    report.images.update(shown)
    report.region_cases.update(name for name, of in report.regions.items() if shown & set(of))


def conclude(report: VolumeReport) -> None:
    """Derives problems and warnings from the counts."""
    if report.unreadable:
        more = len(report.unreadable) - SHOWN
        report.problems.append(
            f"{counted(len(report.unreadable), 'case', 'cases')} cannot be used: {' '.join(report.unreadable[:SHOWN])}"
            + f" --json lists {more} more." * (more > 0)
        )
    if report.unknown_ids:
        ids = sorted(report.unknown_ids, key=lambda key: -report.stored_ids[key])
        shown = [
            f"{k} ({counted(report.stored_ids[k], 'voxel', 'voxels')}, first in '{report.unknown_ids[k]}')"
            for k in ids
        ]
        report.problems.append(f"the labels contain {unknown_ids(shown, report.origin)}")
    if report.constant:
        channels = [f"{name} ({_channels(report, of)})" for name, of in report.constant.items()]
        report.warnings.append(
            f"{counted_names(channels, 'case has a channel', 'cases have channels')[:-1]} with a single value. Check these files."
        )
    report.warnings += class_warnings(report)


def class_warnings(report: VolumeReport) -> list[str]:
    """Warnings about missing foreground, and absent and rare classes; of a sample only the first."""
    if not report.pixels and not report.ignored_pixels:
        return ["no voxel has a class, so there is nothing to learn. Check the labels and the classes."]
    if not any(voxels for label, voxels in report.pixels.items() if label > 0):
        checked = counted(report.num_checked, "case", "cases")
        cases = "no case has" if report.is_complete else f"none of the {checked} checked has"
        return [
            f"{cases} foreground: there are no voxels of {listed(report.classes[1:]) or 'other classes'}. Check the labels."
        ]
    if not report.is_complete:
        return []
    rows = report.rows()
    absent = [row["name"] for row in rows if not row["pixels"]]
    rare = [
        f"{row['name']} ({100 * row['share']:.3f} %)" for row in rows if 0 < row["share"] < RARE_SHARE / 10
    ]
    warnings = [counted_names(absent, "class never occurs", "classes never occur")] if absent else []
    return warnings + ([counted_names(rare, "class is rare", "classes are rare")] if rare else [])


def _times(sides: Sequence[float]) -> str:
    return "x".join(f"{side:.4g}" for side in sides)


def _channels(report: VolumeReport, numbers: Sequence[int]) -> str:
    return ", ".join(one_line(report.channels[number]) for number in numbers)
