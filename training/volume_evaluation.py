"""Evaluation of segmenters of volumes by command."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..modeling.label_rows import respelled
from ..processing.data.volume_datasets import open_volume_data
from ..processing.rasters.work_records import as_text, model_record
from ..processing.volumes.volume_inference import (
    check_processor,
    check_volumes,
    segment_volume,
    volume_window,
)
from ..processing.volumes.volume_scores import VolumeScores
from .case_records import CaseRecords
from .class_matching import check_classes
from .evaluation_files import facts_of
from .evaluation_options import EvaluateArguments
from .inference_options import given_names
from .models import open_model
from .processes import quiet_unless_first
from .score_records import key_of
from .sharing import decided_by_first, open_accelerator, said_once, tell_and_leave
from .stored_reading import reading_for
from .volume_evaluation_files import report_volumes, worst_cases
from .volume_scoring import Segment, VolumeScoringRun

PROGRAM = "contextseg-evaluate"
OF_DATA = ("classes", "default_table", "num_channels")  # what volumes take of `reading_for`


def evaluate_volumes(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores a segmenter of volumes, and writes the results to the output folder.

    Returns:
        The scores of `evaluate_cases`.

    Raises:
        ValueError: If model or data do not exist or do not fit together, or no case can be scored.
    """
    accelerator = open_accelerator(arguments.cpu)
    quiet_unless_first(accelerator)
    with said_once(accelerator, PROGRAM, arguments.traceback):
        check_options(arguments)
        inference = arguments.inference()
        model, processor, source = open_model(arguments.model)
        check_processor(processor)
        volume_window(inference, model, (1, 1, 1))  # raises ValueError for one of images
        reading = reading_for(arguments, arguments.model, model, processor)
        known = {name: value for name, value in reading.items() if name in OF_DATA}
        data = open_volume_data(arguments.data, slice_axis=processor.slice_axis, **known)
    segment = partial(segment_volume, model.to(accelerator.device), processor, inference=inference)
    return evaluate_cases(arguments, model, processor, source, data, segment, accelerator)


def check_options(arguments: EvaluateArguments) -> None:
    """Raises ValueError for options without an effect on scores of volumes."""
    check_volumes(arguments.inference())
    if arguments.workers is not None:
        raise ValueError("--workers has no effect on volumes, which are read one at a time. Leave it out.")
    if arguments.surface_rule == "nnformer" and "tolerance" in given_names(arguments):
        raise ValueError(
            "--tolerance has no effect with --surface-rule nnformer, which has no NSD. Leave one of them out."
        )


def evaluate_cases(
    arguments: EvaluateArguments,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    source: str,
    data: Dataset,
    segment: Segment,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Scores a segmenter on volumes with labels, and writes the results to the output folder.

    Args:
        arguments: Options of the command.
        model: The segmenter.
        processor: Its image processor.
        source: Where they were loaded from.
        data: Its `VolumeData`; the classes are numbered as the model's.
        segment: Predicts the class ids (D, H, W) of a volume.
        accelerator: The processes.

    Returns:
        The scores of `VolumeScores.compute`, and `worst_cases`. If cases could not be scored, `not_scored` lists them
        with the reasons, and the scores are those of the others.

    Raises:
        ValueError: If model and data do not fit together, or no case can be scored.
    """
    started = time.perf_counter()
    with said_once(accelerator, PROGRAM, arguments.traceback):
        scores = new_scores(arguments, check_classes(model, data), data, getattr(processor, "regions", {}))
    folder = decided_by_first(accelerator, lambda: folder_of_parts(arguments, model, processor, data, scores))
    records = CaseRecords(folder, accelerator.process_index)
    failures = VolumeScoringRun(data, segment, scores, records, accelerator).run()
    results = scores.compute() | {"worst_cases": worst_cases(scores)}
    with said_once(accelerator, PROGRAM, arguments.traceback):
        facts = {"model": source, **facts_of(arguments, results, failures, len(data), started, "case")}
    inference = arguments.inference()
    windows = inference.window or getattr(model.config, "crop_size", None)
    facts["protocol"] = f"{replace(inference, window=windows)}, one case at a time on its own grid"
    facts["surfaces"] = surfaces_in_words(scores)
    facts["mean over"] = ", ".join(scores.averaged)
    if accelerator.is_main_process:
        report_volumes(results, facts, scores, arguments.output_folder())
        records.remove()
    tell_and_leave(accelerator, failures)
    return results


def new_scores(
    arguments: EvaluateArguments, names: Sequence[str], data: Any, regions: Mapping[str, Sequence[int]]
) -> VolumeScores:
    """The scores that the options ask for, with the model's `regions` where the data has none.

    Raises ValueError if a class of --mean-classes does not exist.
    """
    return VolumeScores(
        names,
        data.ignore_index,
        regions=data.regions or regions,
        averaged=respelled(arguments.mean_classes, list(names)) or None,
        surface_rule=arguments.surface_rule,
        tolerance=arguments.tolerance,
    )


def folder_of_parts(
    arguments: EvaluateArguments,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: Any,
    scores: VolumeScores,
) -> Path | None:
    """The folder where a stopped evaluation of the same files and settings is kept, if it can go on."""
    cases = [data.case(index) for index in range(len(data))]
    settings = {
        "model": model_record(model),
        "processor": as_text(processor.to_dict()),
        "inference": asdict(arguments.inference()),
        "labels": as_text([data.classes, list(data.label_map.items())]),
        "scores": as_text(vars(scores)),
    }
    key = key_of([file for case in cases for file in (*case.images, case.label)], settings)
    return key and arguments.output_folder() / f"evaluation-{key}.parts"


def surfaces_in_words(scores: VolumeScores) -> str:
    """Says how distances between surfaces are scored."""
    if scores.surface_rule == "nnformer":
        return (
            "nnformer: HD95 over both directions, in voxels, 0 where either is empty; Dice 1 where both are"
        )
    rule = {"max": "the larger of both directions", "pooled": "over both directions"}[scores.surface_rule]
    return f"{scores.surface_rule}: HD95 {rule}, in mm; NSD at {scores.tolerance:g} mm"
