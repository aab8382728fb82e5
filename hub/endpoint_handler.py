"""Serves the model of this folder on an Inference Endpoint of the Hub, after its contract for custom handlers.

A request is an image file of a type `image/...`, or JSON: {"inputs": BASE64, "parameters": {"threshold": 0.5}}. The answer
has for each class in the image its label, its score (the mean of its probability over its pixels) and its mask, a PNG file
in base64 (255 where the class is) of the size of the upright image. A request at fault raises ValueError, whose sentence
the endpoint returns with status 400.
"""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .image_segmenter import ImageSegmenter

PARAMETERS = ("threshold", "subtask")


class EndpointHandler:
    """What the endpoint creates once, and calls with each request.

    Args:
        path: Folder of the model. Default: that of this file.
    """

    def __init__(self, path: str = "") -> None:
        self.segmenter = ImageSegmenter(path or Path(__file__).parent)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Segments an image.

        Args:
            data: "inputs", a PIL image, the bytes of an image file, or these in base64; and optionally "parameters":
                "threshold", the least score of a class in the answer (default 0), and "subtask", "semantic".

        Returns:
            For each class in the image "label", "score", and "mask", a PNG file in base64.

        Raises:
            ValueError: If the request is at fault.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('"inputs" is missing. Send {"inputs": an image file in base64}.')
        threshold = threshold_of(data.get("parameters"))
        segmented = self.segmenter(image_of(data["inputs"]))
        return [
            {
                "label": self.segmenter.labels[index],
                "score": score,
                "mask": png_in_base64(segmented.mask == index),
            }
            for index, score in segmented.scores.items()
            if score >= threshold
        ]


def image_of(inputs: Any) -> Image.Image | bytes:
    """An image, or the content of a file. Text is never a path or an address. Raises ValueError for anything else."""
    if isinstance(inputs, Image.Image):
        return inputs
    if isinstance(inputs, bytes | bytearray) and inputs:
        return bytes(inputs)
    if isinstance(inputs, str):
        text = inputs.partition(",")[2] if inputs.startswith("data:") else inputs
        try:
            content = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f'"inputs" is text, but not an image file in base64 ({error}). Addresses and paths are not opened.'
            ) from error
        if content:
            return content
    is_empty = isinstance(inputs, str | bytes | bytearray)
    given = "empty" if is_empty else f"of type {type(inputs).__name__}"
    raise ValueError(f'"inputs" is {given}. Send one image file, in base64 if the request is JSON.')


def threshold_of(parameters: Any) -> float:
    """The least score of a class in the answer. Raises ValueError for unknown or wrong parameters."""
    given = {} if parameters is None else parameters
    if not isinstance(given, dict):
        raise ValueError(f'"parameters" is of type {type(given).__name__}. Send an object.')
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(given.keys() - set(PARAMETERS)):
        raise ValueError(f"unknown parameter '{unknown[0]}'. Known: {', '.join(PARAMETERS)}.")
    if given.get("subtask", "semantic") != "semantic":
        raise ValueError(
            f"subtask is {given['subtask']!r}, but the model gives semantic masks. Leave it out."
        )
    value = given.get("threshold", 0.0)
    try:
        threshold = float(value)  # of a query in the address it is text
    except (TypeError, ValueError):
        threshold = -1.0
    if isinstance(value, bool) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {value!r}. Send a number from 0 to 1.")
    return threshold


def png_in_base64(region: np.ndarray) -> str:
    """(H, W) bool -> a PNG file in base64, 255 where the region is."""
    with io.BytesIO() as file:
        Image.fromarray(region.astype(np.uint8) * 255).save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode("ascii")
