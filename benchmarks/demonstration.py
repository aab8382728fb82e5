"""Analysis of the model of `contextseg-demo`: use without contextseg, attention, figures.

Legend: H, W height and width of a scene.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ..modeling.explanations import global_attention_maps
from ..processing.data.scenes import AMBIGUOUS, CLASSES, FLAG_REACH, Scene, draw_scene
from ..processing.heat_pictures import heat_overlay, with_cross
from ..processing.inference import Inference
from ..processing.overlays import image_grid, mask_image
from ..training.command_line import CommandError

PALETTE = list(CLASSES.values())

# Code of the second Python process. Arguments: the folders of the model, the images and the masks to write.
STRANGER = """
import sys
sys.modules["contextseg"] = None
from pathlib import Path
import numpy as np
from PIL import Image
from transformers import pipeline
model, images, masks = map(Path, sys.argv[1:])
segment = pipeline("image-segmentation", model=str(model), trust_remote_code=True)
for file in sorted(images.iterdir()):
    image = Image.open(file)
    mask = np.zeros(image.size[::-1], np.uint8)
    for region in segment(image, subtask="semantic"):
        mask[np.asarray(region["mask"]) > 0] = segment.model.config.label2id[region["label"]]
    Image.fromarray(mask).save(masks / file.name)
"""


@dataclass
class SceneComparison:
    """A trained model applied to a scene and to its twin, the same scene with the other flag."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    scene: Scene
    twin: Scene

    @cached_property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted class ids (H, W) of the scene and of its twin."""
        return self.segment(self.scene), self.segment(self.twin)

    def segment(self, scene: Scene) -> np.ndarray:
        """Returns the predicted class ids (H, W) of a scene."""
        return Inference()(self.model, self.processor, scene.image).numpy()

    @cached_property
    def white(self) -> np.ndarray:
        """Mask (H, W) of the pixels whose label depends on the flag."""
        return np.isin(self.scene.mask, AMBIGUOUS)

    @property
    def right(self) -> float:
        """Share of the white pixels that are right with both flags, which is not possible by chance."""
        under_each = [p == s.mask for p, s in zip(self.predictions, (self.scene, self.twin), strict=True)]
        return float((under_each[0] & under_each[1])[self.white].mean())

    @cached_property
    def position(self) -> tuple[int, int]:
        """(x, y) of the white pixel closest to the centroid of all white pixels."""
        places = np.argwhere(self.white)
        row, column = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return int(column), int(row)

    def attention(self, stage: int) -> np.ndarray:
        """Attention (H, W), summing to 1, of the window around `position` via the global tokens of a stage."""
        pixel_values = self.processor(self.scene.image, return_tensors="pt")["pixel_values"]
        return global_attention_maps(self.model, pixel_values, self.position, stage=stage)[0].numpy()

    def attention_on_flag(self, stage: int) -> float:
        """Attention around the flag over the mean of the image; 1 if the flag gets no extra attention."""
        size, reach = self.scene.mask.shape[0], 2 * FLAG_REACH
        around = tuple(slice(max(0, at - reach), min(size, at + reach + 1)) for at in self.scene.flag)
        attention = self.attention(stage)
        return float(attention[around].mean() / attention.mean())


def ask(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    *,
    seed: int,
    count: int,
    size: int,
    distance: float,
) -> list[SceneComparison]:
    """Returns the first scenes of a series with their twins; `size` and `distance` in pixels."""
    return [
        SceneComparison(
            model,
            processor,
            *(draw_scene(seed, index, size, distance, swap_flag=swap) for swap in (False, True)),
        )
        for index in range(count)
    ]


@dataclass
class StageAttention:
    """Attention of one stage around the flags, averaged over scenes, see `SceneComparison.attention_on_flag`."""

    stage: int
    window: int  # pixels
    red: float
    blue: float


def attention_of_stages(comparisons: Sequence[SceneComparison]) -> list[StageAttention]:
    """Measures every stage with global attention, fine to coarse; empty for plain Swin."""
    model = comparisons[0].model
    rows = []
    for number, stage in enumerate(model.backbone.encoder.stages):
        if any(block.global_attention is not None for block in stage.blocks):
            window = model.config.window_size * model.config.patch_size * 2**number
            red, blue = (
                mean(case.attention_on_flag(number) for case in comparisons if case.scene.frozen == is_red)
                for is_red in (True, False)
            )
            rows.append(StageAttention(number, window, red, blue))
    return rows


def best_stage(rows: Sequence[StageAttention], size: int) -> StageAttention | None:
    """Returns the stage with the most attention on flags among those with several windows, if any."""
    crossing = [row for row in rows if row.window < size]
    return max(crossing, key=lambda row: row.red + row.blue, default=None)


def compare_elsewhere(comparisons: Sequence[SceneComparison], model: Path, work: Path) -> int:
    """Segments the scenes in a Python process without contextseg, and compares the masks.

    Returns:
        The number of masks, all identical to those of this process.

    Raises:
        CommandError: If the process fails, or a mask differs.
    """
    images, masks = work / "images", work / "masks"
    for folder in (images, masks):
        folder.mkdir(parents=True)
    ours = {}
    for index, case in enumerate(comparisons):
        for name, scene, prediction in zip("ab", (case.scene, case.twin), case.predictions, strict=True):
            Image.fromarray(scene.image).save(images / f"{index}{name}.png")
            ours[f"{index}{name}.png"] = prediction
    segment_without_contextseg(model, images, masks)
    for name, prediction in ours.items():
        with Image.open(masks / name) as theirs:
            if not np.array_equal(theirs, prediction):
                raise CommandError(
                    f"the mask of {images / name} is different in a Python process without contextseg: {masks / name}."
                )
    return len(ours)


def segment_without_contextseg(model: Path, images: Path, masks: Path) -> None:
    """Segments `images` into `masks` with transformers' pipeline. Raises CommandError if that fails."""
    folders = [str(folder.resolve()) for folder in (model, images, masks)]
    finished = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *folders], capture_output=True, text=True
    )
    if finished.returncode:
        raise CommandError(
            f"{model} does not work in a Python process without contextseg:\n{finished.stderr.strip()}"
        )


def image(comparisons: Sequence[SceneComparison], stage: int | None) -> Image.Image:
    """Draws one row per scene: image, ground truth, prediction, attention, twin, and its prediction."""
    titles = ["image", "ground truth", "prediction", "attention of the cross", "other flag", "prediction"]
    rows = []
    for case in comparisons:
        image, twin = Image.fromarray(case.scene.image), Image.fromarray(case.twin.image)
        masks = [mask_image(mask, PALETTE) for mask in (case.scene.mask, *case.predictions)]
        rows.append([with_cross(image, case.position), *masks[:2], twin, masks[2]])
        if stage is not None:
            rows[-1].insert(3, with_cross(heat_overlay(image, case.attention(stage)), case.position))
    if stage is None:
        titles.remove("attention of the cross")
    return image_grid(rows, titles, CLASSES, cell_width=256)
