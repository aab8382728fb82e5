"""What the events of the page do: an image goes in, and what the models see of it comes out. No gradio here."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..processing.failures import reason
from ..processing.plain_text import counted
from .evidence import evidence_picture, views_of
from .segmenters import Segmented, Segmenter
from .view import data_uri, view_of

ASK = "Click a pixel, or press Enter on the image, to see where the model looks."
FORGOTTEN = "This image is forgotten, as every one is after an hour. Choose it again."
NOT_SHOWN = "Where the model looks cannot be shown: its classes come from masks as a whole, or it returns no feature maps."
ERRORS = (
    ValueError,
    OSError,
    RuntimeError,
    MemoryError,
)  # of files, models and memory; each becomes a sentence


@dataclass
class Looked:
    """An image that the page shows.

    Args:
        name: Name of its file.
        segmented: What each model sees.
        at: (x, y) of the pixel that was clicked last, or None.
        is_shown: Whether no later image has taken its place.
        is_written: Whether its files to download are written or being written.
    """

    name: str
    segmented: list[Segmented]
    at: tuple[int, int] | None = None
    is_shown: bool = True
    is_written: bool = False


class Actions:
    """What the events of the page do.

    Args:
        segmenters: One model, or two to compare.
        folder: Folder for the masks and overlays to download.
    """

    def __init__(self, segmenters: Sequence[Segmenter], folder: Path) -> None:
        self.segmenters, self.folder = segmenters, folder
        self.views = [views_of(segmenter) for segmenter in segmenters]

    @property
    def kinds(self) -> list[str]:
        """The kinds of view that any of the models has."""
        return list(dict.fromkeys(kind for views in self.views for kind in views))

    @property
    def hint(self) -> str:
        """How to see where the models look, or that they cannot show it."""
        return ASK if self.kinds else NOT_SHOWN

    @property
    def stages(self) -> list[int]:
        """The stages, counted from 1, that any view has."""
        return sorted({stage + 1 for views in self.views for stages in views.values() for stage in stages})

    @property
    def downloads(self) -> list[str]:
        """What `write` writes, in its order."""
        names = (
            [""] if len(self.segmenters) == 1 else [f" of {segmenter.name}" for segmenter in self.segmenters]
        )
        return [f"{kind}{name}" for name in names for kind in ("mask", "overlay")]

    def segment(self, path: Path, tell: Callable[[float], Any] = lambda _: None) -> Looked:
        """Segments an image file with each model.

        Args:
            path: The file.
            tell: Called with the share that is done, from 0 to 1; what it raises ends the work.

        Raises:
            ValueError: If it cannot be segmented; the message names the file without its folder.
        """
        count = len(self.segmenters)
        try:
            segmented = [
                segmenter.segment(path, lambda share, before=before: tell((before + share) / count))
                for before, segmenter in enumerate(self.segmenters)
            ]
        except ERRORS as error:
            raise ValueError(reason(error).replace(str(path), path.name)) from error
        return Looked(path.name, segmented)

    def view(self, looked: Looked) -> dict[str, Any]:
        """Returns what the viewer shows of an image, for JSON."""
        return {**view_of(looked.name, self.segmenters, looked.segmented), "looks": bool(self.kinds)}

    def write(self, looked: Looked) -> list[str]:
        """Writes masks and overlays to a new folder; returns their paths."""
        folder, stem = Path(tempfile.mkdtemp(dir=self.folder)), Path(looked.name).stem
        files = []
        for number, (segmenter, one) in enumerate(zip(self.segmenters, looked.segmented, strict=True), 1):
            model = "" if len(self.segmenters) == 1 else f"-model{number}"
            files += segmenter.write(one, folder, f"{stem}{model}")
        return [str(path) for path in files]

    def explain(self, looked: Looked | None, kind: str | None, stage: int | None) -> str:
        """Returns, as HTML, where each model looks from the pixel that was clicked; stages are counted from 1."""
        if looked is None:
            return paragraph(FORGOTTEN, "alert")
        if looked.at is None or kind is None or stage is None:
            return paragraph(self.hint)
        each = zip(self.segmenters, looked.segmented, self.views, strict=True)
        return "".join(figure((kind, stage - 1), looked.at, *one) for one in each)


def figure(
    view: tuple[str, int],
    at: tuple[int, int],
    segmenter: Segmenter,
    segmented: Segmented,
    views: Mapping[str, Sequence[int]],
) -> str:
    """Returns, as HTML, where one model looks from a pixel, or why that cannot be shown."""
    kind, stage = view
    text = f"{segmenter.name}: {kind}, stage {stage + 1}, from x {at[0]}, y {at[1]}"
    if stage not in views.get(kind, ()):
        has = "; ".join(
            f"{name}, stages {', '.join(str(n + 1) for n in stages)}" for name, stages in views.items()
        )
        return paragraph(
            f"{segmenter.name} cannot show {kind} of stage {stage + 1}. It can show: {has or 'nothing'}."
        )
    try:
        picture = data_uri(evidence_picture(segmenter, segmented, view, at))
    except ERRORS as error:
        return paragraph(reason(error), "alert")
    return (
        f'<figure><img src="{picture}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
    )


def paragraph(text: str, role: str = "status") -> str:
    """A sentence as HTML, which screen readers read out; the role of an error is "alert"."""
    return f'<p role="{role}">{escape(text)}</p>'


def summary(looked: Looked, seconds: float) -> str:
    """What was done, in a sentence."""
    photo = looked.segmented[0].photo
    models = counted(len(looked.segmented), "model", "models")
    return f"{looked.name}, {photo.width} x {photo.height} pixels, segmented by {models} in {seconds:.1f} s."
