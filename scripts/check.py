"""contextseg-check: checks every image or volume and its mask, label or objects before training.

    contextseg-check data/train
    contextseg-check data --task classification

Heavy imports follow the parsing of the command line, so that `--help` answers at once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..training.command_line import CommandLine, CommandOptions, option, positional, short_errors
from ..training.inference_options import check_task
from ..training.interruption import interruptible
from ..training.reading_options import ReadingOptions

if TYPE_CHECKING:
    from ..processing.data.count_report import CountReport
    from ..processing.data.report import CheckReport
    from ..processing.data.volume_report import VolumeReport

PROGRAM = "contextseg-check"
SPLITS = ("train", "val", "valid", "validation", "test")
DESCRIPTION = """Read all images and masks of a dataset and report pairs, sizes, class shares, unknown ids and unreadable
files. Exits with 1 if there is a problem that would stop training. A folder of splits (train/, val/) is checked split by split.
Folders of volumes as of nnU-Net and the Medical Segmentation Decathlon are checked as they are.
For classification and detection, images are read, and the images or objects of each class are counted."""


@dataclass
class CheckArguments(CommandOptions, ReadingOptions):
    data: str = positional(
        "folder with images/ and masks/, folder of such folders, folder of volumes, or NAME:SPLIT of a dataset for "
        "`datasets`; for other tasks, as for contextseg-train"
    )
    task: Literal["segmentation", "classification", "detection"] = option(
        "segmentation", "what the data is for"
    )
    sample: int | None = option(
        None, "number of images or cases to check, spread evenly over the data (default: all)"
    )
    json: bool = option(False, "print the report as JSON")


def new_parser() -> CommandLine:
    return CommandLine(CheckArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        check_task(arguments, arguments.task)
        reports = [check(source, arguments) for source in splits(arguments.data, arguments.task)]
    if arguments.json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))
    else:
        print("\n\n".join(report.text() for report in reports))
        if arguments.words():
            print(f"train with the same options:{arguments.words()}")
    return int(any(report.problems for report in reports))


def splits(source: str, task: str) -> list[str]:
    """Returns the folder, its subfolders with data, or the splits of a dataset, published or for `datasets`."""
    from ..processing.data.dataset_rows import split_names
    from ..processing.data.official_layouts import sources_of_splits
    from ..processing.data.pairing import folders_of_pairs
    from ..processing.data.volume_layouts import is_volume_folder
    from ..processing.image_files import subfolders

    folder = Path(source)
    if task == "detection" and (files := sorted(folder.glob("annotations/instances_*.json"))):
        names = [file.stem.removeprefix("instances_").rstrip("0123456789") for file in files]
        return [f"{source}:{name}" for name in names]
    inside = subfolders(folder) if folder.is_dir() else []
    if task == "detection":
        return [str(sub) for sub in inside if (sub / "annotations.json").is_file()] or [source]
    if task == "classification":
        if inside and all(sub.name in SPLITS for sub in inside):
            return [str(sub) for sub in inside]
        return [f"{source}:{name}" for name in split_names(folder)] or [source]
    if official := sources_of_splits(source):
        return official
    if (folder / "images").is_dir() or not folder.is_dir() or is_volume_folder(source):
        return [source]
    if pairs := folders_of_pairs(folder) or [sub for sub in inside if is_volume_folder(sub)]:
        return [str(sub) for sub in pairs]
    return [f"{source}:{name}" for name in split_names(folder)] or [source]


def check(source: str, arguments: CheckArguments) -> "CheckReport | CountReport | VolumeReport":
    """Checks one split."""
    if arguments.task != "segmentation":
        return check_labels(source, arguments)
    from ..processing.data.datasets import open_data
    from ..processing.data.report import check_data
    from ..processing.data.volume_layouts import is_volume_folder

    if is_volume_folder(source):
        return check_volume_folder(source, arguments)
    dataset = open_data(source, needs_all_pairs=False, **arguments.keywords())
    return check_data(dataset, arguments.sample, name=source, progress=True)


def check_volume_folder(source: str, arguments: CheckArguments) -> "VolumeReport":
    """Checks volumes, and adds what a run on them would plan."""
    from ..processing.data.volume_datasets import open_volume_data
    from ..processing.data.volume_report import check_volumes
    from ..training.inference_options import VOLUMES
    from ..training.volume_planning import plan_volumes

    check_task(arguments, VOLUMES)
    data = open_volume_data(
        source, classes=arguments.classes, needs_all_pairs=False, num_channels=arguments.num_channels
    )
    report = check_volumes(data, arguments.sample, name=source, progress=True)
    if report.grids:
        report.plan = plan_volumes(*zip(*report.grids, strict=True)).lines()
    return report


def check_labels(source: str, arguments: CheckArguments) -> "CountReport":
    """Checks one split of data for classification or detection."""
    from ..processing.data.count_report import check_labeled_images, check_objects

    if arguments.task == "classification":
        from ..processing.data.labeled_images import open_labeled_images

        data, examine = open_labeled_images(source, **arguments.keywords()), check_labeled_images
    else:
        from ..processing.data.coco import open_coco

        data, examine = open_coco(source, "val", **arguments.keywords()), check_objects
    return examine(data, arguments.sample, name=source, progress=True)


if __name__ == "__main__":
    sys.exit(main())
