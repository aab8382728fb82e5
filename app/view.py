"""What the viewer in the browser gets: the photograph, class ids, maps and colors, as texts."""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..processing.heat_pictures import colors_of
from ..processing.legends import is_background, share_text
from ..processing.plain_text import one_line
from .segmenters import Segmented, Segmenter, shown_pixels

COLORMAP = "viridis"
NAME_LENGTH = 60  # characters of a class name
THUMBNAIL = 160  # pixels


def view_of(name: str, segmenters: Sequence[Segmenter], segmented: Sequence[Segmented]) -> dict[str, Any]:
    """Returns all that the viewer shows of an image, for JSON.

    Args:
        name: Name of the image.
        segmenters: The models.
        segmented: The image as each of them sees it.
    """
    photo = segmented[0].photo
    rows, columns = shown_pixels((photo.height, photo.width))
    shown = (
        photo.resize((len(columns), len(rows)), Image.Resampling.BOX) if len(rows) < photo.height else photo
    )
    return {
        "name": name,
        "photo": data_uri(shown, "PNG" if max(photo.size) <= SMALL else "JPEG"),
        "width": photo.width,
        "height": photo.height,
        "shownWidth": len(columns),
        "shownHeight": len(rows),
        "colors": packed(colors_of(COLORMAP)),
        "models": [model_view(*each) for each in zip(segmenters, segmented, strict=True)],
    }


SMALL = 512  # images up to this side are sent without loss


def model_view(segmenter: Segmenter, segmented: Segmented) -> dict[str, Any]:
    """Returns what the viewer shows of one model."""
    mask = segmented.mask.numpy()
    rows, columns = shown_pixels(mask.shape)
    counts = np.bincount(mask.ravel(), minlength=len(segmenter.names))
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    classes = [
        {
            "id": label,
            "name": one_line(segmenter.names[label], NAME_LENGTH),
            "color": [int(level) for level in segmenter.palette[label]],
            "share": share_text(counts[label] / mask.size),
            "background": is_background(segmenter.names[label]),
        }
        for label in present
    ]
    return {
        "title": segmenter.name,
        "note": str(segmented.inference),
        "classes": classes,
        "ids": packed(mask[np.ix_(rows, columns)].astype("<u2")),
        "maps": {name: packed(values) for name, values in segmented.maps.items()},
    }


def packed(values: np.ndarray) -> str:
    """The bytes of an array, compressed by zlib, as base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode()


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """An image as the address of itself, for `src`."""
    stream = io.BytesIO()
    image.save(stream, format=kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def thumbnail(image: Image.Image) -> str:
    """A small copy of an image, as the address of itself."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(small)
