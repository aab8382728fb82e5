"""From a dataset to batches of tensors, in an order that depends only on the seed.

Training reads one endless stream of samples: epoch after epoch, each shuffled on its own. Batch `k` is always
the same part of that stream, with the same crops and flips, whichever process loads it and wherever a run was
interrupted.
"""

import os
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import BaseImageProcessor

from ..image_reading import ImageReadError
from ..inference import Inference
from ..pair_inputs import with_contexts
from ..samples import scale_for
from .augmentation import JointAugmentation, windowed
from .streamed_pairs import streamed_pair
from .unreadable import UNREADABLE, ReadableImages, complaints_of, readable_sample

PICTURE_SIDE = 240  # pixels


class SampleStream(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys; each of `world` processes gets every `world`-th batch.

    Args:
        length: Number of samples in the dataset.
        batch_size: Samples per batch and process.
        seed: Seed of the order.
        start: First batch of this process.
        stop: End of the batches of this process, exclusive.
        rank: Index of this process.
        world: Number of processes.
        crops: How often each sample occurs in an epoch; each occurrence has an epoch number of its own.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        crops: int = 1,
    ) -> None:
        self.length, self.batch_size, self.seed, self.crops = length, batch_size, seed, crops
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.start, self.stop):
            first = (batch * self.world + self.rank) * self.batch_size
            yield [self.key(position) for position in range(first, first + self.batch_size)]

    def key(self, position: int) -> tuple[int, int]:
        """The epoch and the index of the sample at a position of the stream."""
        epoch, place = divmod(position, self.length * self.crops)
        crop, index = divmod(epoch_order(self.length * self.crops, self.seed, epoch)[place], self.length)
        return epoch * self.crops + crop, index


def position_of(key: tuple[int, int], length: int, seed: int, crops: int = 1) -> int:
    """The position in the stream of a sample with this epoch and index; the inverse of `SampleStream.key`."""
    epoch, crop = divmod(key[0], crops)
    place = epoch_order(length * crops, seed, epoch).index(crop * length + key[1])
    return epoch * length * crops + place


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The shuffled indices of one epoch."""
    generator = torch.Generator().manual_seed((seed << 32) + epoch)
    return torch.randperm(length, generator=generator).tolist()


class TrainingSamples(Dataset):
    """Augmented and normalized samples, indexed by (epoch, index)."""

    def __init__(self, data: Dataset, augmentation: JointAugmentation, processor: BaseImageProcessor) -> None:
        self.data, self.augmentation, self.processor = data, augmentation, processor

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key

        def crop(place: int) -> dict[str, Any]:
            return self.augmentation.crop(windowed(self.data, place), epoch=epoch, index=index, as_array=True)

        sample = readable_sample(self.data, index, crop)
        planes = np.ascontiguousarray(np.moveaxis(sample["image"], -1, 0))
        pixels = self.processor.normalized(planes)[None]
        labels = torch.as_tensor(sample["mask"], dtype=torch.int64)[None]
        inputs = with_contexts({"pixel_values": pixels, "labels": labels}, [sample], self.processor)
        return {
            **{name: values[0] for name, values in inputs.items()},
            "name": sample["name"],
            UNREADABLE: sample[UNREADABLE],
        }

    def __len__(self) -> int:
        return len(self.data)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return collate(samples)


class WholeImages(Dataset):
    """Images for evaluation: inputs as `inference` takes them, and labels at the original size.

    A large raster is a `StreamedPair` instead, under the key "streamed".

    Args:
        data: Samples with image and mask.
        processor: Image processor.
        inference: How the model is applied.
        shown: Indices of the samples that also get a small picture (H, W, 3), uint8. Default: none.
        streaming: Settings of a `StreamedPair`, for large rasters. Default: its own.
    """

    def __init__(
        self,
        data: Dataset,
        processor: BaseImageProcessor,
        inference: Inference,
        shown: Collection[int] = (),
        streaming: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.processor, self.inference, self.shown = data, processor, inference, shown
        self.streaming = streaming or {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = streamed_pair(self.data, index, self.processor, **self.streaming)
        if pair is not None:
            return {"streamed": pair, "name": pair.name, "index": index}
        sample = self.data[index]
        return {
            "inputs": self.inference.inputs(
                self.processor, sample["image"], **scale_for(self.processor, sample)
            ),
            "labels": torch.as_tensor(sample["mask"], dtype=torch.int64),
            "name": sample["name"],
            "index": index,
            "picture": small_picture(sample["image"]) if index in self.shown else None,
        }

    def name(self, index: int) -> str:
        """The name of a sample in messages."""
        try:
            return self.data.sources(index).name
        except Exception:  # it is named after another one that has failed
            return f"sample {index}"


def small_picture(image: Image.Image | np.ndarray) -> np.ndarray:
    """An image of a sample -> (H, W, 3), uint8, of at most 240 x 240 pixels.

    Of more than three channels, it has the first three; of two, the first.
    """
    if not isinstance(image, Image.Image):
        channels = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)
        image = Image.fromarray(np.nan_to_num(channels).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return np.array(image)  # writable, as torch expects


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks tensors into a batch and puts other values, and errors of unreadable images, into lists."""
    complaints = complaints_of(samples)
    samples = [sample for sample in samples if sample]
    batch = {name: [sample[name] for sample in samples] for name in (samples[0] if samples else ())}
    batch = {name: torch.stack(v) if torch.is_tensor(v[0]) else v for name, v in batch.items()}
    return batch | complaints


def training_loader(
    samples: Dataset, stream: SampleStream, *, workers: int | None, pin_memory: bool
) -> DataLoader:
    """Loads the batches of `stream`, collated by the `collate` method of `samples`."""
    return DataLoader(
        samples, batch_sampler=stream, collate_fn=samples.collate, **loader_options(workers, pin_memory)
    )


def evaluation_loader(
    images: Dataset,
    *,
    workers: int | None,
    pin_memory: bool = False,
    rank: int = 0,
    world: int = 1,
    left: Sequence[int] | None = None,
    errors: tuple[type[Exception], ...] = (ImageReadError,),
) -> DataLoader:
    """Loads one image at a time, since sizes may differ; each of `world` processes gets its share.

    `left` are the indices of the images to load, by default all. A sample that raises one of `errors` is replaced by
    its message, see `ReadableImages`.
    """
    indices = (range(len(images)) if left is None else left)[rank::world]
    options = loader_options(workers, pin_memory)
    return DataLoader(ReadableImages(images, errors), sampler=indices, batch_size=None, **options)


def loader_options(workers: int | None, pin_memory: bool) -> dict[str, Any]:
    workers = default_workers() if workers is None else workers
    options = {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "worker_init_fn": leave_signals_to_the_main_process,
        "generator": torch.Generator(),  # otherwise each new iterator draws from the generator of dropout
    }
    return options | ({"prefetch_factor": 4} if workers else {})


def default_workers() -> int:
    """The cores per training process minus one, at least one and at most eight."""
    cores = (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, cores - 1))


def leave_signals_to_the_main_process(worker: int) -> None:  # noqa: ARG001
    """Ignores Ctrl-C and SIGTERM, which often reach the whole group: training needs its workers to save."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
