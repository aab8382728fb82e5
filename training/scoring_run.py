"""One evaluation of a segmenter in one or several processes, which goes on where an earlier one was stopped."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.boundary_metrics import BoundaryScore
from ..processing.data.batches import WholeImages, evaluation_loader
from ..processing.data.streamed_pairs import RasterScoring, StreamedPair, add_sums, streamed_pair
from ..processing.data.unreadable import UNREADABLE, UnreadableImages
from ..processing.failures import concerns_every_file, reason, telling
from ..processing.metrics import ConfusionMatrix
from ..processing.progress import progress
from ..processing.rasters.files import RasterFile
from ..processing.rasters.work_records import as_text, model_record
from .evaluation_options import EvaluateArguments
from .option_texts import byte_count
from .score_records import ScoreRecords, evaluation_key
from .scoring import count, not_scored
from .sharing import (
    consecutive_share,
    decided_by_first,
    done_by_all,
    gathered,
    is_divided,
    name_of,
    predicted_by_all,
)
from .stored_reading import crop_of_run

logger = logging.getLogger(__name__)
CONTINUE = "Run the command again to go on."
WIDE = 100  # pixels around boundaries, above which the distance is probably not what is meant


class ScoringRun:
    """Scores the share of this process, and joins the counts of all processes.

    Args:
        arguments: Options of the command.
        model: The segmenter.
        processor: Its image processor.
        data: Images with masks, numbered as the model's classes.
        metrics: Updated with the images of this process; those of earlier runs, and rasters that processes divide, are
            counted by the first.
        accelerator: The processes.
    """

    def __init__(
        self,
        arguments: EvaluateArguments,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        data: Dataset,
        metrics: Sequence[ConfusionMatrix | BoundaryScore],
        accelerator: Accelerator,
    ) -> None:
        self.arguments, self.inference = arguments, arguments.inference()
        self.processor, self.data, self.metrics, self.accelerator = processor, data, metrics, accelerator
        self.window, self.failed = crop_of_run(arguments.model), UnreadableImages(skip=True, quiet=True)
        record, folder = decided_by_first(accelerator, lambda: self.place(model))
        memory = byte_count(arguments.memory)
        self.streaming = {"memory": memory, "window": self.window, "model": record, "folder": folder}
        self.records = ScoreRecords(folder, metrics, accelerator.process_index)
        self.model, self.has_told = model.to(accelerator.device).eval(), False

    def place(self, model: PreTrainedModel) -> tuple[str, Path | None]:
        """The record of the model, and the folder where a stopped evaluation is kept, if it can go on."""
        record = model_record(model)
        settings = {
            "model": record,
            "processor": as_text(self.processor.to_dict()),
            "inference": asdict(self.inference),
            "window": self.window,
            "labels": as_text(vars(self.data.decoder)),
            "reading": [self.data.num_channels, self.data.value_range],
            "scores": [as_text({**vars(metric), "counts": None, "matrix": None}) for metric in self.metrics],
        }
        key = evaluation_key(self.data, settings)
        return record, key and self.arguments.output_folder() / f"evaluation-{key}.parts"

    def score(self) -> list[str]:
        """Scores all images that are not scored yet.

        Returns:
            The images of all processes that could not be scored, and why, in alphabetical order.

        Raises:
            OSError: If the disk is full or read-only.
        """
        done = set(decided_by_first(self.accelerator, self.records.restore))
        if done:
            logger.warning(
                "%s of %s images were scored before by a run that was stopped", len(done), len(self.data)
            )
        left = [index for index in range(len(self.data)) if index not in done]
        divided = decided_by_first(
            self.accelerator, lambda: [index for index in left if self.is_divided(index)]
        )
        images = evaluation_loader(
            WholeImages(self.data, self.processor, self.inference, streaming=self.streaming),
            workers=self.arguments.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            left=[index for index in left if index not in divided],
            errors=(Exception,),
        )
        shown = progress(images, unit="image")
        mine = len(images) + len(divided) + (len(done) if self.accelerator.is_main_process else 0)
        try:
            with telling(lambda: self.state(mine)):
                hooks = {"on_scored": self.note, "on_error": self.note_failure}
                count(
                    self.model,
                    map(self.announced, self.failed.filter(shown)),
                    self.metrics,
                    self.inference,
                    **hooks,
                )
                for index in divided:
                    self.score_together(self.pair(index))
                failures = not_scored(self.failed, self.accelerator)
        except BaseException:
            with suppress(OSError):  # the disk may be what is wrong
                self.records.write()
            raise
        if len(failures) == len(self.data) and self.accelerator.is_main_process:
            self.records.remove()  # of part files
        return failures

    def state(self, total: int) -> str:
        """What is done of this process's images, at an interruption."""
        scored = len(self.records.done)
        kept = "" if self.records.folder is None else f" {CONTINUE}"
        return f"{name_of(self.accelerator)}{scored} of {total} images were scored; no results were written.{kept}"

    def note(self, sample: dict[str, Any]) -> None:
        """Keeps that an image is scored."""
        pair = sample.get("streamed")
        self.records.note(sample["index"], at_once=pair is not None)
        if pair is not None:
            pair.remove_parts()

    def note_failure(self, error: Exception, name: str) -> None:
        """Keeps why an image is not scored. Raises an error that concerns every file."""
        self.failed.check({UNREADABLE: [self.told(error, name)]})

    def told(self, error: Exception, name: str) -> str:
        if concerns_every_file(error):
            raise error
        return reason(error, f"'{name}'")

    def pair(self, index: int) -> StreamedPair | None:
        return streamed_pair(self.data, index, self.processor, **self.streaming)

    def scoring(self, pair: StreamedPair) -> RasterScoring:
        return RasterScoring(pair, pair.folder, self.model, self.inference)

    def is_divided(self, index: int) -> bool:
        """Whether an image is divided among processes, rather than given to one of them."""
        if self.accelerator.num_processes == 1 or self.records.folder is None:
            return False
        try:
            pair = self.pair(index)
            return pair is not None and is_divided(len(self.scoring(pair).bands), self.accelerator)
        except Exception:  # it is told when the image is scored
            return False

    def announced(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample. Says once if boundaries of a raster are scored within a distance that is hardly meant."""
        if "streamed" in sample:
            self.check_distance(sample["streamed"])
        return sample

    def check_distance(self, pair: StreamedPair) -> None:
        distances = [
            metric.distance(RasterFile(pair.image).shape[1:])
            for metric in self.metrics
            if isinstance(metric, BoundaryScore)
        ]
        if self.arguments.boundary_band is None and not self.has_told and max(distances) > WIDE:
            self.has_told = True
            logger.warning(
                "'%s' is large: its boundary IoU is scored within %d pixels of boundaries, and its boundary F within %d. "
                "State a distance in pixels with --boundary-band, such as 5",
                pair.name,
                *distances,
            )

    def score_together(self, pair: StreamedPair) -> None:
        """Scores one raster in all processes, each of which does neighboring rows of windows; the first counts it."""
        self.check_distance(pair)
        totals: list[tuple[int, list[Tensor]]] = []

        def told(error: Exception) -> str:
            return self.told(error, pair.name)

        def sum_up() -> None:
            scoring = self.scoring(pair)
            if bands := consecutive_share(scoring.bands, self.accelerator):
                totals.append((0, scoring.sums(self.metrics, bands)))

        failure = predicted_by_all(self.accelerator, lambda: self.scoring(pair), told)
        failure = failure or done_by_all(self.accelerator, sum_up, told)
        everything = gathered(self.accelerator, totals)
        if not self.accelerator.is_main_process:
            return
        if failure is not None:
            self.failed.check({UNREADABLE: [failure]})
            return
        add_sums(self.metrics, [sum(sums) for sums in zip(*everything, strict=True)])
        self.records.note(pair.index, at_once=True)
        pair.remove_parts()
