"""What becomes of images that cannot be read in the middle of a training: it stops and names the first, or does without them.

Complaints travel with the batches and count when their batch is used, so that neither workers nor what they load ahead
matter: the error comes at the same step, and a resumed run counts on. What takes the place of an unreadable image is
a function of its index.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from ..image_reading import ImageReadError

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # the key of a sample's or batch's complaints


def readable_sample(data: Dataset, index: int) -> dict[str, Any]:
    """The sample of `index`, or the next one that can be read, with complaints about those before it."""
    complaints = []
    for offset in range(len(data)):
        try:
            return data[(index + offset) % len(data)] | {UNREADABLE: complaints}
        except ImageReadError as error:
            complaints.append(str(error))
    raise ValueError(
        f"none of the {len(data)} training images can be read. See that their disk is mounted. The first: {complaints[0]}"
    )


def complaints_of(samples: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Takes the complaints out of samples; for their batch, where there are any."""
    complaints = [complaint for sample in samples for complaint in sample.pop(UNREADABLE, ())]
    return {UNREADABLE: complaints} if complaints else {}


class ReadableImages(Dataset):
    """The samples of a data set for evaluation; of an unreadable one only the complaint is left."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self.images[index]
        except ImageReadError as error:
            return {UNREADABLE: [str(error)]}


class UnreadableImages:
    """Raises at the first unreadable image, or with `skip` counts how often each was left out."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.times: Counter[str] = Counter()

    def check(self, batch: dict[str, Any]) -> None:
        """Takes the complaints out of a batch."""
        for complaint in batch.pop(UNREADABLE, ()):
            if not self.skip:
                raise ImageReadError(complaint)
            if complaint not in self.times:
                logger.warning("left out: %s", complaint)
            self.times[complaint] += 1

    def filter(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches without complaints, and without those that are nothing else."""
        for batch in batches:
            self.check(batch)
            if batch:
                yield batch

    def collect(self, accelerator: Accelerator) -> None:
        """Moves the counts of all processes to the first."""
        if accelerator.num_processes > 1:
            counts = gather_object([self.times])
            self.times = sum(counts, Counter()) if accelerator.is_main_process else Counter()

    def summary(self) -> str:
        return f"{len(self.times)} images could not be read and were left out; run.json names them"
