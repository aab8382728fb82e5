"""Records of work on a raster, by which a stopped run continues, or starts anew if anything has changed.

What cannot be recognized again, such as an array in memory, gets a unique record, so its work starts anew.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

UNRECORDED = ("_name_or_path", "name_or_path", "transformers_version")  # of a model's configuration


def record_of(model: str, processor: Any, inference: Any, raster: Any, files: Sequence[str]) -> dict:
    """Returns everything that the results of a raster depend on, as values for JSON.

    Args:
        model: Its `model_record`.
        processor: Its image processor.
        inference: The `Inference`.
        raster: The raster.
        files: The files that it lies in.
    """
    reading = processor.to_dict() if hasattr(processor, "to_dict") else processor.__dict__
    return {
        "model": model,
        "processor": as_text(reading),
        "inference": as_text(asdict(inference)),
        "scene": {"shape": list(raster.shape), "files": [file_record(path) for path in files] or unique()},
    }


def model_record(model: nn.Module) -> str:
    """Returns a digest of a model's settings and weights; a unique one if weights are not in memory."""
    digest = hashlib.blake2b(digest_size=16)
    settings = model.config.to_dict() if hasattr(model.config, "to_dict") else vars(model.config)
    digest.update(as_text({k: v for k, v in settings.items() if k not in UNRECORDED}).encode())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.is_meta or type(tensor) not in (
            torch.Tensor,
            nn.Parameter,
        ):  # offloaded, sharded, quantized
            return unique()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_text(settings: Any) -> str:
    """Returns settings as a text that is the same for the same settings in every process."""
    return json.dumps(
        settings, sort_keys=True, default=lambda v: sorted(map(repr, v)) if isinstance(v, set) else repr(v)
    )


def file_record(path: str) -> list[Any]:
    """Returns path, size and time of a file; a unique record if it is not on this machine."""
    try:
        state = os.stat(path)
    except OSError:
        return [path, unique()]
    return [os.path.realpath(path), state.st_size, state.st_mtime_ns]


def unique() -> str:
    return uuid.uuid4().hex


def files_of(source: Any, raster: Any) -> list[str]:
    """Returns the files that a raster lies in: for a mosaic its parts too, for an image file that file.

    Args:
        source: What was opened.
        raster: The raster that it was opened as.
    """
    dataset = getattr(raster, "dataset", None)
    if hasattr(dataset, "files"):
        return sorted(map(str, dataset.files))
    for holder in (source, getattr(raster, "array", None)):
        if isinstance(holder, str | os.PathLike):
            return [os.fspath(holder)]
        if isinstance(holder, np.memmap) and holder.filename is not None:
            return [os.fspath(holder.filename)]
    return []
