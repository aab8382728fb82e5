"""Handling of images that cannot be read during training: training stops at the first one, or skips them.

Error messages travel with the batches and are counted when their batch is used. So the result does not depend
on workers and prefetching: the error is raised at the same step, and a resumed run continues the count. The
replacement of an unreadable image depends only on its index.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from ..failures import reason
from ..image_reading import ImageReadError

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # key of the error messages in a sample or batch


def readable_sample(
    data: Dataset, index: int, read: Callable[[int], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The sample at `index` or the next readable one, with the error messages of those skipped.

    Args:
        data: The dataset.
        index: Index of the sample.
        read: Makes the sample of an index; by default that of `data`.

    Raises:
        ValueError: If no sample is readable.
    """
    read = read or data.__getitem__
    complaints = []
    for offset in range(len(data)):
        try:
            return read((index + offset) % len(data)) | {UNREADABLE: complaints}
        except ImageReadError as error:
            complaints.append(str(error))
    raise ValueError(
        f"none of the {len(data)} training images can be read. Check that their disk is mounted. "
        f"The first error: {complaints[0]}"
    )


def complaints_of(samples: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Removes the error messages from samples and returns them as an entry of the batch, if there are any."""
    complaints = [complaint for sample in samples for complaint in sample.pop(UNREADABLE, ())]
    return {UNREADABLE: complaints} if complaints else {}


class ReadableImages(Dataset):
    """The samples of a dataset for evaluation; an unreadable one is replaced by its error message.

    Args:
        images: The dataset.
        errors: Errors that are replaced. All but `ImageReadError` need a method `name(index)` of the dataset.
    """

    def __init__(self, images: Dataset, errors: tuple[type[Exception], ...] = (ImageReadError,)) -> None:
        self.images, self.errors = images, errors

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self.images[index]
        except self.errors as error:
            is_named = isinstance(error, ImageReadError)
            return {UNREADABLE: [str(error) if is_named else reason(error, self.images.name(index))]}


class UnreadableImages:
    """Raises `ImageReadError` at the first unreadable image, or counts the skipped ones with `skip`.

    Skipped images are logged unless `quiet`.
    """

    def __init__(self, skip: bool = False, quiet: bool = False) -> None:
        self.skip, self.quiet = skip, quiet
        self.times: Counter[str] = Counter()

    def check(self, batch: dict[str, Any]) -> None:
        """Removes the error messages from a batch, and raises or counts them."""
        for complaint in batch.pop(UNREADABLE, ()):
            if not self.skip:
                raise ImageReadError(complaint)
            if complaint not in self.times and not self.quiet:
                logger.warning("skipped: %s", complaint)
            self.times[complaint] += 1

    def filter(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches without error messages; batches without a readable image are dropped."""
        for batch in batches:
            self.check(batch)
            if batch:
                yield batch

    def collect(self, accelerator: Accelerator) -> None:
        """Sums the counts of all processes in the main process."""
        if accelerator.num_processes > 1:
            counts = gather_object([self.times])
            self.times = sum(counts, Counter()) if accelerator.is_main_process else Counter()

    def summary(self) -> str:
        return f"{len(self.times)} images could not be read and were skipped; run.json lists them"
