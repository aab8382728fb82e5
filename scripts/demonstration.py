"""What `contextseg-demo` does with its trained model: lets a stranger use it, asks it about single scenes, and reports.

Legend: H, W image axes.
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
from ..processing.inference import Inference
from ..processing.overlays import grid_of_pictures, heat_overlay, mask_picture, with_cross
from ..training.command_line import CommandError

PALETTE = list(CLASSES.values())

# What the second Python runs: arguments are the model's folder, and two folders for images and for their masks.
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
class Asked:
    """A trained model, asked about one scene and about the same scene under the other flag."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    scene: Scene
    twin: Scene

    @cached_property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) class ids of the scene and of its twin."""
        return self.segment(self.scene), self.segment(self.twin)

    def segment(self, scene: Scene) -> np.ndarray:
        return Inference()(self.model, self.processor, scene.image).numpy()

    @cached_property
    def white(self) -> np.ndarray:
        """(H, W) true where the label hangs on the flag."""
        return np.isin(self.scene.mask, AMBIGUOUS)

    @property
    def right(self) -> float:
        """Share of the white pixels that are right under both flags: what knows the flag, and not by chance."""
        under_each = [p == s.mask for p, s in zip(self.predictions, (self.scene, self.twin), strict=True)]
        return float((under_each[0] & under_each[1])[self.white].mean())

    @cached_property
    def position(self) -> tuple[int, int]:
        """(x, y) of the white pixel nearest to the middle of all white pixels."""
        places = np.argwhere(self.white)
        row, column = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return int(column), int(row)

    def attention(self, stage: int) -> np.ndarray:
        """(H, W), summing to one: where the window around that pixel looks through the stage's global tokens."""
        pixel_values = self.processor(self.scene.image, return_tensors="pt")["pixel_values"]
        return global_attention_maps(self.model, pixel_values, self.position, stage=stage)[0].numpy()

    def attention_on_flag(self, stage: int) -> float:
        """Attention around the flag over the mean of the image: 1 where the flag draws no more than anything else."""
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
) -> list[Asked]:
    """The first scenes of a series, each with its twin."""
    return [
        Asked(
            model,
            processor,
            *(draw_scene(seed, index, size, distance, swap_flag=swap) for swap in (False, True)),
        )
        for index in range(count)
    ]


@dataclass
class StageAttention:
    """What the global tokens of one stage make of the flags, on average over scenes."""

    stage: int
    window: int  # pixels
    red: float
    blue: float


def attention_of_stages(asked: Sequence[Asked]) -> list[StageAttention]:
    """Every stage with global attention, fine to coarse; none for plain Swin."""
    model = asked[0].model
    rows = []
    for number, stage in enumerate(model.backbone.encoder.stages):
        if any(block.global_attention is not None for block in stage.blocks):
            window = model.config.window_size * model.config.patch_size * 2**number
            red, blue = (
                mean(case.attention_on_flag(number) for case in asked if case.scene.frozen == is_red)
                for is_red in (True, False)
            )
            rows.append(StageAttention(number, window, red, blue))
    return rows


def best_stage(rows: Sequence[StageAttention], size: int) -> StageAttention | None:
    """Among the stages with several windows, where attention crosses from one to another: the one that finds flags best."""
    crossing = [row for row in rows if row.window < size]
    return max(crossing, key=lambda row: row.red + row.blue, default=None)


def compare_elsewhere(asked: Sequence[Asked], model: Path, work: Path) -> int:
    """Lets a Python without contextseg segment the scenes from the saved folder; the number of masks, all equal to ours."""
    images, masks = work / "images", work / "masks"
    for folder in (images, masks):
        folder.mkdir(parents=True)
    ours = {}
    for index, case in enumerate(asked):
        for name, scene, prediction in zip("ab", (case.scene, case.twin), case.predictions, strict=True):
            Image.fromarray(scene.image).save(images / f"{index}{name}.png")
            ours[f"{index}{name}.png"] = prediction
    run_stranger(model, images, masks)
    for name, prediction in ours.items():
        with Image.open(masks / name) as theirs:
            if not np.array_equal(theirs, prediction):
                raise CommandError(
                    f"{images / name} got another mask in a Python without contextseg: {masks / name}."
                )
    return len(ours)


def run_stranger(model: Path, images: Path, masks: Path) -> None:
    folders = [str(folder.resolve()) for folder in (model, images, masks)]
    finished = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *folders], capture_output=True, text=True
    )
    if finished.returncode:
        raise CommandError(
            f"{model} does not work in a Python without contextseg:\n{finished.stderr.strip()}"
        )


def picture(asked: Sequence[Asked], stage: int | None) -> Image.Image:
    """A row for each scene: image, truth, prediction, where the cross looks, then the twin and its prediction."""
    titles = ["image", "truth", "prediction", "where the cross looks", "flag repainted", "prediction"]
    rows = []
    for case in asked:
        image, twin = Image.fromarray(case.scene.image), Image.fromarray(case.twin.image)
        masks = [mask_picture(mask, PALETTE) for mask in (case.scene.mask, *case.predictions)]
        rows.append([with_cross(image, case.position), *masks[:2], twin, masks[2]])
        if stage is not None:
            rows[-1].insert(
                3, with_cross(heat_overlay(image, case.attention(stage), strength=0.65), case.position)
            )
    if stage is None:
        titles.remove("where the cross looks")
    return grid_of_pictures(rows, titles, CLASSES, cell_width=256)
