"""The page of gradio: its components, and which event calls which action. Only here and in `server.py` is gradio known."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio

from .actions import ASK, Actions, Looked, paragraph, summary
from .examples import Example

HERE = Path(__file__).parent
TITLE = "contextseg"
HOUR = 3600  # seconds, after which uploads and results are deleted
PROGRESS = gradio.Progress()  # as a default value, it makes gradio pass the one of the event
CHOOSE = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("choose", { index: Number(button.value) });
});
"""
EVENT = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}  # one image at a time


@dataclass
class Parts:
    """The components that events read or change."""

    upload: gradio.File
    choice: gradio.HTML
    status: gradio.HTML
    viewer: gradio.HTML
    side: gradio.Column
    kind: gradio.Radio
    stage: gradio.Radio
    evidence: gradio.HTML
    downloads: list[gradio.DownloadButton]
    looked: gradio.State

    def changed(self) -> list[Any]:
        """What changes with the image, in the order of `Handlers.segment`."""
        return [self.upload, self.status, self.looked, self.viewer, self.side, self.evidence, *self.downloads]


def build_page(actions: Actions, examples: Sequence[Example]) -> gradio.Blocks:
    """Returns the page.

    Args:
        actions: What its events do.
        examples: Images to choose from.
    """
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        parts = lay_out(actions, examples)
        handlers = Handlers(actions, examples, parts)
        at_viewer = {"outputs": parts.changed(), "show_progress_on": parts.viewer, **EVENT}
        latest = {"trigger_mode": "always_last", **EVENT}
        parts.upload.upload(handlers.segment_upload, parts.upload, **at_viewer)
        parts.choice.choose(handlers.segment_example, **at_viewer)
        view = [parts.looked, parts.kind, parts.stage]
        parts.viewer.look(handlers.look, view, [parts.looked, parts.evidence], **latest)
        for choice in (parts.kind, parts.stage):
            choice.change(actions.explain, view, parts.evidence, **latest)
    return page


def lay_out(actions: Actions, examples: Sequence[Example]) -> Parts:
    """Places the components."""
    names = [segmenter.name for segmenter in actions.segmenters]
    verb = "sees" if len(names) == 1 else "see"
    gradio.HTML(f"<h1>{TITLE}</h1><p>What {escape(' and '.join(names))} {verb} in an image.</p>")
    with gradio.Row():
        upload = gradio.File(label="Drop an image here", height=132, min_width=300, elem_id="upload")
        with gradio.Column(min_width=300):
            choice = html("examples", examples_html(examples), js_on_load=CHOOSE)
    status = html("status", "")
    with gradio.Row():
        with gradio.Column(scale=3, min_width=300):
            template, script = text_of("viewer.html"), text_of("viewer.js")
            viewer = html("viewer", None, html_template=template, js_on_load=script, min_height=60)
        with gradio.Column(scale=2, min_width=300, visible=False) as side:
            kind = radio("Where it looks", actions.kinds)
            stage = radio("Stage, fine to coarse", actions.stages)
            evidence = html("evidence", paragraph(ASK))
            with gradio.Row():
                downloads = [
                    gradio.DownloadButton(f"Download {what}", min_width=140) for what in actions.downloads
                ]
    looked = gradio.State(time_to_live=HOUR)
    return Parts(upload, choice, status, viewer, side, kind, stage, evidence, downloads, looked)


class Handlers:
    """Connects events to actions: what each component gets after an event."""

    def __init__(self, actions: Actions, examples: Sequence[Example], parts: Parts) -> None:
        self.actions, self.examples, self.parts = actions, examples, parts

    def segment(self, path: Path, progress: gradio.Progress) -> list[Any]:
        """New values of `Parts.changed`; for a file that cannot be segmented, of the status alone."""
        start = time.perf_counter()
        try:
            looked = self.actions.segment(path, lambda share: progress(share, desc="Segmenting"))
        except ValueError as error:
            return [None, paragraph(str(error), "alert"), *[gradio.skip()] * (len(self.parts.changed()) - 2)]
        said = paragraph(summary(looked, time.perf_counter() - start))
        side = gradio.Column(visible=True)
        return [
            None,
            said,
            looked,
            self.actions.view(looked),
            side,
            paragraph(ASK),
            *self.actions.write(looked),
        ]

    def segment_upload(self, path: str | None, progress: gradio.Progress = PROGRESS) -> list[Any]:
        return self.segment(Path(path), progress) if path else [gradio.skip()] * len(self.parts.changed())

    def segment_example(self, event: gradio.EventData, progress: gradio.Progress = PROGRESS) -> list[Any]:
        return self.segment(self.examples[int(event.index)].path, progress)

    def look(
        self, looked: Looked | None, kind: str | None, stage: int | None, event: gradio.EventData
    ) -> list[Any]:
        if looked is not None:  # it is forgotten after an hour
            looked.at = int(event.x), int(event.y)
        return [looked, self.actions.explain(looked, kind, stage)]


def radio(label: str, choices: Sequence[str | int]) -> gradio.Radio:
    return gradio.Radio(choices, value=next(iter(choices), None), label=label)


def html(name: str, value: Any, **settings: Any) -> gradio.HTML:
    """A component of our own HTML, with the style sheet of its name where there is one."""
    style = HERE / f"{name}.css"
    css = style.read_text(encoding="utf-8") if style.is_file() else ""
    return gradio.HTML(value, css_template=css, apply_default_css=False, elem_id=name, **settings)


def text_of(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def examples_html(examples: Sequence[Example]) -> str:
    """A button with a small picture for each example."""
    buttons = (
        f'<button type="button" value="{number}" title="{escape(example.path.name)}">'
        f'<img src="{example.picture}" alt="Example {escape(example.path.name)}"></button>'
        for number, example in enumerate(examples)
    )
    if not examples:
        return ""
    return f'<p>Or choose an example:</p><div class="examples">{"".join(buttons)}</div>'
