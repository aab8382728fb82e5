"""Scores of segmenters on volumes, for `contextseg-evaluate` and for the validation during training.

Cases are divided among processes, and one is in memory at a time. A prediction is compared with its mask on the grid of the file.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from ..processing.failures import concerns_every_file, reason, telling
from ..processing.progress import progress
from ..processing.volumes.volume_scores import CaseScores, VolumeScores
from .case_records import CaseRecords
from .sharing import decided_by_first, gathered, name_of, share_of, wait_for_all

logger = logging.getLogger(__name__)
CONTINUE = "Run the command again to go on."
Segment = Callable[[Any], np.ndarray]  # a `Volume` -> class ids (D, H, W)


def score_volumes(
    data: Dataset, segment: Segment, scores: VolumeScores, accelerator: Accelerator
) -> dict[str, Any]:
    """Scores a segmenter on the volumes of all processes, as validation during training does.

    Args:
        data: `VolumeData`, whose samples have `name`, `image` and `mask`.
        segment: Predicts the class ids (D, H, W) of a volume.
        scores: Their cases are replaced by those of all processes, in the order of the data.
        accelerator: The processes.

    Returns:
        The scores of `VolumeScores.compute`, in every process.
    """
    mine = share_of(range(len(data)), accelerator)
    cases = [(index, score_case(data[index], segment, scores)) for index in mine]
    scores.cases = gathered(accelerator, cases)
    return scores.compute()


def score_case(sample: dict[str, Any], segment: Segment, scores: VolumeScores) -> CaseScores:
    """Predicts one sample of `VolumeData`, and returns its scores, which are added to `scores`."""
    volume = sample["image"]
    return scores.update(segment(volume), sample["mask"], volume.spacing, sample["name"])


class VolumeScoringRun:
    """One evaluation in one or several processes, which goes on where an earlier one was stopped.

    Args:
        data: `VolumeData`, numbered as the model's classes.
        segment: Predicts the class ids (D, H, W) of a volume.
        scores: After `run`, they have the cases of all processes in the order of the data.
        records: The scores of cases that are done.
        accelerator: The processes.
    """

    def __init__(
        self,
        data: Dataset,
        segment: Segment,
        scores: VolumeScores,
        records: CaseRecords,
        accelerator: Accelerator,
    ) -> None:
        self.data, self.segment, self.scores = data, segment, scores
        self.records, self.accelerator = records, accelerator
        self.failures: list[str] = []

    def run(self) -> list[str]:
        """Scores all cases that are not scored yet.

        Returns:
            The cases of all processes that could not be scored, and why, in alphabetical order.

        Raises:
            OSError: If the disk is full or read-only.
        """
        done = set(decided_by_first(self.accelerator, self.records.restore))
        if done:
            logger.warning(
                "%s of %s cases were scored before by a run that was stopped", len(done), len(self.data)
            )
        mine = share_of([index for index in range(len(self.data)) if index not in done], self.accelerator)
        total = len(mine) + len(self.records.done)
        with telling(lambda: self.state(total)):
            self.score(progress(mine, unit="case"))
            wait_for_all(self.accelerator)
        self.scores.cases = gathered(self.accelerator, self.records.done.items())
        failures = sorted(gather_object(self.failures))
        if len(failures) == len(self.data) and self.accelerator.is_main_process:
            self.records.remove()
        return failures

    def score(self, indices: Iterable[int]) -> None:
        """Scores these cases; one that fails is noted, and the others go on."""
        for index in indices:
            try:
                case = score_case(self.data[index], self.segment, self.scores)
            except Exception as error:
                if concerns_every_file(error):
                    raise
                self.failures.append(reason(error, f"'{self.data.case(index).name}'"))
            else:
                self.records.note(index, case)

    def state(self, total: int) -> str:
        """What is done of this process's cases, at an interruption."""
        kept = "" if self.records.folder is None else f" {CONTINUE}"
        scored = len(self.records.done)
        return f"{name_of(self.accelerator)}{scored} of {total} cases were scored; no results were written.{kept}"
