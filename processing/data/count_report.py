"""Checks of data for classification and detection: unreadable images, sizes, and how often each class occurs."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..failures import reason, telling
from ..plain_text import one_line
from ..progress import progress as progress_of
from ..value_ranges import StoredValues, UnknownRangeError
from .inspection import Finding, lost_values
from .labeled_images import LabeledImages
from .pairing import listed
from .report import add_range_findings, in_threads, sizes_text

if TYPE_CHECKING:
    from .coco import CocoData

BAR = 30  # characters


@dataclass
class CountReport:
    """What was found in a data set of labeled images, or of images with objects.

    Args:
        name: Name of the data in the report.
        classes: Class names by index.
        counted: What `counts` counts: "images" or "objects".
        num_samples: Number of images in the data set.
        num_checked: Number of images that were read.
        counts: Class index -> number of images or objects.
        sizes: (height, width) in pixels -> number of images.
        unreadable: Error messages of images that cannot be read.
        unknown_ranges: Values of images whose black and white are unknown, by name.
        lost_values: Values of images of which hardly any gray levels are left as they are read, by name.
        problems: What would stop training.
        warnings: What may reduce the quality of the trained model.
    """

    name: str
    classes: list[str]
    counted: str
    num_samples: int
    num_checked: int = 0
    counts: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unknown_ranges: dict[str, StoredValues] = field(default_factory=dict)
    lost_values: dict[str, StoredValues] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as values that JSON can store."""
        return {
            "data": self.name,
            "samples": self.num_samples,
            "checked": self.num_checked,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.sizes.most_common()],
            "classes": [
                {"index": index, "name": name, self.counted: self.counts[index]}
                for index, name in enumerate(self.classes)
            ],
            "unreadable": self.unreadable,
            "problems": self.problems,
            "warnings": self.warnings,
        }

    def text(self) -> str:
        """The report as plain text: sizes, a table of classes, problems and warnings."""
        checked = "" if self.num_checked == self.num_samples else f", {self.num_checked} of them checked"
        lines = [f"{self.name}: {self.num_samples} images{checked}", f"sizes    {sizes_text(self.sizes)}", ""]
        lines += [*self.class_lines(), ""]
        lines += [f"PROBLEM  {text}" for text in self.problems]
        lines += [f"warning  {text}" for text in self.warnings]
        return "\n".join(lines + ([] if self.problems else ["ready to train"]))

    def class_lines(self) -> list[str]:
        """The lines of a table of classes, each with a bar for its share."""
        shown = [one_line(name) for name in self.classes]
        width, total = max(map(len, [*shown, "class"])), max(1, self.counts.total())
        lines = [f"{'':>4}  {'class':<{width}}  {self.counted:>7}"]
        for index, name in enumerate(shown):
            count = self.counts[index]
            bar = "█" * round(BAR * count / total)
            lines.append(f"{index:>4}  {name:<{width}}  {count:>7}  {bar}".rstrip())
        return lines


def check_labeled_images(
    data: LabeledImages, sample: int | None = None, *, name: str = "data", progress: bool = False
) -> CountReport:
    """Counts the images of each class, and reads images.

    Args:
        data: Data set from `open_labeled_images`.
        sample: Number of evenly spaced images to read. Default: all.
        name: Name of the data in the report.
        progress: Whether to show a progress bar.

    Returns:
        The report. An image that cannot be read or has no label is a problem, a class without images a warning:
        training data needs images of every class, validation data does not.
    """
    report = CountReport(name, data.classes, "images", len(data))
    unlabeled = []
    for index in range(len(data)):
        try:
            report.counts[data.source(index)[1]] += 1
        except ValueError as error:  # a row without an image or a label
            unlabeled.append(reason(error, data.name_of(index)))
    read_images(report, data, sample, progress)
    report.unreadable += [message for message in unlabeled if message not in report.unreadable]
    conclude(report)
    return report


def check_objects(
    data: "CocoData", sample: int | None = None, *, name: str = "data", progress: bool = False
) -> CountReport:
    """Counts the annotated objects of each class, and reads images.

    Args:
        data: Data set from `open_coco`, opened as "val", so that it has all images.
        sample: Number of evenly spaced images to read. Default: all.
        name: Name of the data in the report.
        progress: Whether to show a progress bar.

    Returns:
        The report. An image that cannot be read or differs in size from its annotations is a problem; images
        without objects, objects that training leaves out, and classes without objects are warnings.
    """
    from .coco import learnable

    report = CountReport(name, data.classes, "objects", len(data))
    empty = left_out = 0
    for row in data.rows:
        kept = learnable(row["objects"], (row["height"], row["width"]))
        report.counts.update(found["class"] for found in kept)
        empty, left_out = empty + (not kept), left_out + len(row["objects"]) - len(kept)
    read_images(report, data, sample, progress)
    if not report.counts:
        report.problems.append("no image has an object to learn from. Annotate some objects.")
    elif empty:
        report.warnings.append(
            f"{empty} of {len(data)} images have no object to learn from; training leaves them out."
        )
    if left_out:
        report.warnings.append(
            f"{left_out} of {left_out + report.counts.total()} objects are not learned: they are crowds, or have no "
            "mask or a box of less than a pixel."
        )
    conclude(report)
    return report


def read_images(report: CountReport, data: Dataset, sample: int | None, progress: bool) -> None:
    """Reads `sample` evenly spaced images; adds sizes, errors and the number of images read to the report."""
    count = len(data) if sample is None else min(sample, len(data))
    indices = np.linspace(0, len(data) - 1, count).round().astype(int).tolist()
    state = f"{{}} of {count} images of {report.name} were checked. Run the command again.".format
    with (
        telling(lambda: state(report.num_checked)),
        closing(in_threads(inspect_image, data, indices)) as found,
    ):
        for finding in progress_of(found, total=count, unit="image", desc="checking", disable=not progress):
            report.num_checked += 1
            if finding.values:
                (report.unknown_ranges if finding.unreadable else report.lost_values)[finding.name] = (
                    finding.values
                )
            elif finding.unreadable:
                report.unreadable.append(finding.unreadable)
            if finding.size:
                report.sizes[finding.size] += 1
    add_range_findings(report, data)


def conclude(report: CountReport) -> None:
    """Derives problems and warnings from the counts."""
    if report.unreadable:
        report.problems.append(f"{len(report.unreadable)} unreadable: " + " ".join(report.unreadable[:3]))
    if absent := [name for index, name in enumerate(report.classes) if not report.counts[index]]:
        report.warnings.append(f"classes without {report.counted}: {listed(absent)}.")


def inspect_image(data: Any, index: int) -> Finding:
    """Reads an image; errors become part of the finding."""
    name = data.name_of(index)
    try:
        image = data[index]["image"]
        return Finding(
            name, image.size[::-1], values=lost_values(data, lambda: data.image_source(index), image)
        )
    except UnknownRangeError as error:
        return Finding(name, unreadable=str(error), values=error.values)
    except Exception as error:
        return Finding(name, unreadable=reason(error, name))
