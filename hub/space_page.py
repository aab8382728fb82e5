"""The page of a Space: an image in, its classes out; for models with global tokens also where a pixel looks.

Written by `contextseg-export --space`; it runs where contextseg is not installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw

from .image_segmenter import WHOLE_PIXELS, ImageSegmenter, as_rgb

SHOWN_SIDE = 1280  # pixels of the pictures on the page; the mask to download has those of the image
NAME_LENGTH = 40  # characters of a class name
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # dark to bright


class Page:
    """What the page does with an image.

    Args:
        segmenter: The model.
        colors: One color for each class, as "#rrggbb".
    """

    def __init__(self, segmenter: ImageSegmenter, colors: Sequence[str]) -> None:
        self.segmenter, self.colors = segmenter, colors
        self.names = [shortened(label) for label in segmenter.labels]

    def segment(self, file: str | None) -> tuple[Any, Image.Image | None, list[list[Any]]]:
        """An image file -> its classes over the picture, its mask, and a table of its classes."""
        if file is None:
            return None, None, []
        content = Path(file).read_bytes()
        try:
            segmented = self.segmenter(content)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        names, mask = self.names, segmented.mask
        picture = shown(content)
        small = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
        regions = [((small == index).astype(float), names[index]) for index in segmented.scores]
        share = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        rows = [
            [names[index], round(100 * float(share[index]), 2), round(score, 3)]
            for index, score in sorted(segmented.scores.items(), key=lambda item: -share[item[0]])
        ]
        return (picture, regions), self.colored(mask), rows

    def colored(self, mask: np.ndarray) -> Image.Image:
        """A mask as an image whose values are the class ids, up to 256 classes in their colors."""
        image = Image.fromarray(mask)
        if mask.dtype == np.uint8:
            image.putpalette(bytes.fromhex("".join(color[1:] for color in self.colors)))
        return image

    def look(self, file: str | None, event: gr.SelectData) -> Image.Image:
        """An image file and a click on it -> attention of the window around the pixel, over the picture."""
        content = Path(file).read_bytes()
        try:
            image = as_rgb(content)
            (x, y), (width, height) = event.index, image.size
            if width * height > WHOLE_PIXELS:
                side = max(width, height) * (WHOLE_PIXELS / width / height) ** 0.5
                image.thumbnail((side, side))
            values = self.segmenter.inputs(image)
            rows, columns = values.shape[-2:]
            place = min(int(x * columns / width), columns - 1), min(int(y * rows / height), rows - 1)
            heat = self.segmenter.attention_maps(self.segmenter.model, values, place)[0]
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        at = (x + 0.5) * image.width / width, (y + 0.5) * image.height / height
        return with_cross(heat_over(image, heat.float().cpu()), *at)


def shortened(label: str) -> str:
    """A class name in one line that leaves room beside it."""
    text = " ".join(label.split())
    return text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…"


def shown(content: bytes) -> Image.Image:
    """The upright picture of an image file, as large as the page shows it."""
    picture = as_rgb(content)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return picture


def heat_over(image: Image.Image, heat: torch.Tensor) -> Image.Image:
    """Values (h, w) in colors from dark to bright over a gray picture; the scale ends at the 99.5th percentile."""
    low, high = float(heat.min()), float(np.percentile(heat.numpy(), 99.5))
    scaled = ((heat - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    stops = np.linspace(0, 1, len(HEAT))
    colors = np.stack([np.interp(scaled, stops, levels) for levels in zip(*HEAT, strict=True)], axis=-1)
    picture = Image.fromarray(colors.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("L").convert("RGB"), picture, 0.6)


def with_cross(image: Image.Image, x: float, y: float) -> Image.Image:
    """The image with a cross at a position, drawn into it."""
    draw, arm = ImageDraw.Draw(image), max(4, max(image.size) // 40)
    for color, width in (("black", 5), ("cyan", 3)):
        draw.line([x - arm, y, x + arm, y], fill=color, width=width)
        draw.line([x, y - arm, x, y + arm], fill=color, width=width)
    return image


def path_of(payload: Any) -> str | None:
    """What the browser sends for an image -> the path of the file."""
    return None if payload is None else payload.path


def build(title: str, page: Page, example: Path | None = None) -> gr.Blocks:
    """The page, ready to launch.

    Args:
        title: Its title.
        page: What it does.
        example: An image file to try. Default: none.
    """
    looks = page.segmenter.attention_maps is not None
    hint = " Click a pixel of the image to see where it looks." if looks else ""
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(f"# {title}\n\nChoose an image: each pixel gets one of {len(page.names)} classes.{hint}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Image")
                image.preprocess = (
                    path_of  # the model says what is wrong with a damaged file, where gr.Image fails
                )
                if example is not None and example.is_file():
                    gr.Examples([[str(example)]], image)
            with gr.Column():
                legend = dict(zip(page.names, page.colors, strict=True))
                overlay = gr.AnnotatedImage(label="Classes", color_map=legend)
        with gr.Row():
            if looks:
                heat = gr.Image(label="Where the pixel at the cross looks", interactive=False)
            with gr.Column():
                headers = ["class", "% of the image", "mean probability"]
                table = gr.Dataframe(headers=headers, label="Classes in the image", interactive=False)
                mask = gr.Image(label="Mask (its values are the class ids)", format="png", interactive=False)
        image.change(page.segment, image, [overlay, mask, table], api_name="segment")
        if looks:
            image.change(lambda: None, None, heat, api_visibility="private")
            image.select(page.look, image, heat, trigger_mode="multiple", api_visibility="private")
    return demo
