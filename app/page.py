"""The page of gradio: its components, and which event calls which action. Only here and in `server.py` is gradio known."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio

from .actions import Actions, Looked, paragraph, summary
from .examples import Example
from .latest import Abandoned, Latest

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
# Of events: those that only note what is asked for; those that need a model, one at a time; and those that write files.
NOTED = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "multiple",
    "api_visibility": "private",
}
MODEL = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "trigger_mode": "multiple",
    "api_visibility": "private",
}
FILES = {**MODEL, "concurrency_id": "files", "show_progress": "hidden"}


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
        return [self.status, self.looked, self.viewer, self.side, self.evidence, *self.downloads]


def build_page(actions: Actions, examples: Sequence[Example]) -> gradio.Blocks:
    """Returns the page.

    Args:
        actions: What its events do.
        examples: Images to choose from.
    """
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        parts = lay_out(actions, examples)
        handlers = Handlers(actions, examples, parts)
        connect(handlers, parts)
        page.unload(handlers.leave)
    return page


def connect(handlers: "Handlers", parts: Parts) -> None:
    """Says which event calls which handlers."""
    asked = [parts.upload, parts.status]
    noted = [
        parts.upload.upload(handlers.ask_upload, parts.upload, asked, **NOTED),
        parts.choice.choose(handlers.ask_example, None, asked, **NOTED),
    ]
    for event in noted:
        segmented = event.then(
            handlers.segment, parts.looked, parts.changed(), show_progress_on=parts.viewer, **MODEL
        )
        segmented.then(handlers.write, parts.looked, parts.downloads, **FILES)
    view = [parts.looked, parts.kind, parts.stage]
    pointed = parts.viewer.look(handlers.ask_pixel, None, None, **NOTED)
    pointed.then(handlers.look, view, parts.evidence, **MODEL)
    for choice in (parts.kind, parts.stage):
        choice.change(
            handlers.actions.explain, view, parts.evidence, **{**MODEL, "trigger_mode": "always_last"}
        )


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
            evidence = html("evidence", paragraph(actions.hint))
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
        self.images, self.pixels = Latest(), Latest()

    def ask_upload(self, path: str | None, request: gradio.Request) -> list[Any]:
        return [gradio.skip()] * 2 if path is None else self.ask(Path(path), request)

    def ask_example(self, event: gradio.EventData, request: gradio.Request) -> list[Any]:
        return self.ask(self.examples[int(event.index)].path, request)

    def ask(self, path: Path, request: gradio.Request) -> list[Any]:
        """Notes an image; returns new values of upload and status."""
        self.images.ask(request.session_hash, path)
        return [None, paragraph(f"{path.name} is being segmented.")]

    def segment(
        self, before: Looked | None, request: gradio.Request, progress: gradio.Progress = PROGRESS
    ) -> list[Any]:
        """New values of `Parts.changed`; for a file that cannot be segmented, of the status alone."""
        visitor, start, unchanged = request.session_hash, time.perf_counter(), gradio.skip()
        others = [unchanged] * (len(self.parts.changed()) - 1)
        path = self.images.take(visitor)
        if path is None:
            return [unchanged, *others]

        def tell(share: float) -> None:
            self.images.check(visitor)
            progress(share, desc="Segmenting")

        try:
            looked = self.actions.segment(path, tell)
        except Abandoned:
            return [unchanged, *others]
        except ValueError as error:
            return [paragraph(str(error), "alert"), *others]
        if before is not None:
            before.is_shown = False
        said = paragraph(summary(looked, time.perf_counter() - start))
        side, evidence = gradio.Column(visible=True), paragraph(self.actions.hint)
        waiting = gradio.DownloadButton(value=None, interactive=False)
        return [
            said,
            looked,
            self.actions.view(looked),
            side,
            evidence,
            *[waiting] * len(self.parts.downloads),
        ]

    def write(self, looked: Looked | None) -> list[Any]:
        """New values of `Parts.downloads`, which take a while of a large image, after it is shown."""
        unchanged = [gradio.skip()] * len(self.parts.downloads)
        if looked is None or looked.is_written:
            return unchanged
        looked.is_written = True
        files = self.actions.write(looked)
        return (
            [gradio.DownloadButton(value=file, interactive=True) for file in files]
            if looked.is_shown
            else unchanged
        )

    def ask_pixel(self, event: gradio.EventData, request: gradio.Request) -> None:
        self.pixels.ask(request.session_hash, (int(event.x), int(event.y)))

    def look(
        self, looked: Looked | None, kind: str | None, stage: int | None, request: gradio.Request
    ) -> Any:
        at = self.pixels.take(request.session_hash)
        if at is None:
            return gradio.skip()
        if looked is not None:  # it is forgotten after an hour
            looked.at = at
        return self.actions.explain(looked, kind, stage)

    def leave(self, request: gradio.Request) -> None:
        self.images.leave(request.session_hash)
        self.pixels.leave(request.session_hash)


def radio(label: str, choices: Sequence[str | int]) -> gradio.Radio:
    return gradio.Radio(choices, value=next(iter(choices), None), label=label, visible=bool(choices))


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
