"""Training and scoring for `contextseg-context`, on scenes whose cue is near only some of the white pixels.

Legend: N scenes, S side of a scene in pixels, C channels.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice, pairwise
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation
from ..processing.data.scenes import AMBIGUOUS, CLASSES, FLAGS, IGNORE_INDEX, Scene, draw_scene
from ..processing.metrics import ConfusionMatrix
from ..training.optim import learning_rate_factor, parameter_groups, set_learning_rate
from .receptive_field import axis_view, reach, sees_box

OTHER_ENCODERS = "\n## In encoders of transformers and timm\n"  # the last section of the page
WARMUP_STEPS, WEIGHT_DECAY, CLIP_NORM = 100, 0.01, 1.0
SHOWN = 2  # scenes in the figure
OTHER_ENCODERS = "\n## In encoders of transformers and timm\n"  # the last section of the page
FLAG_WEIGHT = 10  # loss weight of the flag classes, which are 1 % of the pixels


@dataclass(frozen=True)
class Network:
    """A network to train, one row of the tables.

    Args:
        num_global_tokens: Global tokens per window.
        use_global_attention: Whether global tokens attend to those of other windows (G-MSA).
        window_size: Side of the windows in patches.
    """

    num_global_tokens: int
    use_global_attention: bool = True
    window_size: int = 2

    @property
    def title(self) -> str:
        """The name of the network in tables."""
        if self.window_size > 2:
            return f"{self.num_global_tokens} tokens, windows of {self.window_size} x {self.window_size}"
        if not self.num_global_tokens:
            return "0 tokens (Swin-Unet)"
        tokens = f"{self.num_global_tokens} token{'s' if self.num_global_tokens > 1 else ''}"
        return f"{tokens}, G-MSA" if self.use_global_attention else f"{tokens}, no G-MSA"

    @property
    def sees_far(self) -> bool:
        """Whether the network can see the flag from further away than a few windows of 2 x 2."""
        return (self.num_global_tokens > 0 and self.use_global_attention) or self.window_size > 2

    def config(self, **sizes: int | float | tuple[int, ...]) -> GlamSwinConfig:
        """A Unet of two stages with 1 and 3 blocks; networks differ only in tokens, G-MSA and windows.

        The initial weights are larger than Swin's 0.02, which suits 96 channels and more. With 0.02 this
        narrow network needs several times as many steps before its tokens carry information.
        """
        options = {
            "embed_dim": 32,
            "depths": (1, 3),
            "num_heads": (2, 4),
            "window_size": self.window_size,
            "patch_size": 4,
            "initializer_range": 0.15,
            "drop_path_rate": 0.0,
        }
        weights = [FLAG_WEIGHT if label in FLAGS else 1 for label in range(len(CLASSES))]
        return GlamSwinConfig(
            decoder="unet",
            num_labels=len(CLASSES),
            class_weights=weights,
            num_global_tokens=self.num_global_tokens,
            use_global_attention=self.use_global_attention,
            **{**options, **sizes},
        )


@dataclass
class SceneBatch:
    """Scenes as tensors: (N, C, S, S) normalized images and (N, S, S) class ids."""

    scenes: list[Scene]
    pixel_values: Tensor = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        images = torch.from_numpy(np.stack([scene.image for scene in self.scenes]))
        self.pixel_values = (images.movedim(-1, 1).float() / 255 - 0.5) / 0.25
        self.labels = torch.from_numpy(np.stack([scene.mask for scene in self.scenes])).long()


@lru_cache(maxsize=4)
def draw_near(seed: int, number: int, size: int, nearest: float, swap_flag: bool = False) -> SceneBatch:
    """The first `number` scenes of a series that have a white pixel within `nearest` pixels of the flag."""
    drawn = (draw_scene(seed, index, size, distance=0, swap_flag=swap_flag) for index in count())
    return SceneBatch(list(islice((scene for scene in drawn if scene.distance <= nearest), number)))


def train(network: Network, images: SceneBatch, task: "Task", seed: int) -> nn.Module:
    """Trains with AdamW, warm-up and linear decay to zero, on scenes drawn with replacement."""
    torch.manual_seed(seed)
    model = GlamSwinForSemanticSegmentation(network.config())
    return trained(model, images, task, seed, task.steps_of(network))


def trained(
    model: nn.Module,
    images: SceneBatch,
    task: "Task",
    seed: int,
    steps: int,
    after_step: Callable[[int], None] = lambda _: None,
) -> nn.Module:
    """Trains a model in place, as `train`, and calls `after_step` with 1, 2, ...; returns it in evaluation mode."""
    model.train()
    groups = parameter_groups(model, learning_rate=task.learning_rate, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        factor = learning_rate_factor(step, steps=steps, warmup_steps=WARMUP_STEPS, schedule="poly")
        set_learning_rate(optimizer, factor)
        chosen = torch.randint(len(images.labels), (task.batch_size,), generator=order)
        loss = model(pixel_values=images.pixel_values[chosen], labels=images.labels[chosen]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        after_step(step + 1)
    return model.eval()


@torch.inference_mode()
def predict(model: nn.Module, images: SceneBatch) -> Tensor:
    """-> (N, S, S) class ids. The batch size is one, so a scene and its twin are computed in the same way."""
    return torch.cat([model(pixel_values=one[None]).logits.argmax(dim=1) for one in images.pixel_values])


@dataclass(frozen=True)
class Places:
    """The positions of the white pixels of scenes.

    Args:
        bins: (N, S, S) index of the distance bin, -1 for pixels that are not scored.
        in_view: (N, S, S) whether the logit of the pixel can see part of the flag without global attention.
        reach: The largest distance in pixels that a logit can see without global attention.
    """

    bins: np.ndarray
    in_view: np.ndarray
    reach: int


def place(scenes: list[Scene], config: GlamSwinConfig, edges: Sequence[int]) -> Places:
    """Assigns white pixels to bins by the larger of their distances in rows and in columns.

    White pixels that see the flag only around the border of the image are left out: they are near it for a
    network without global attention, but far for a reader.
    """
    view = axis_view(config, scenes[0].mask.shape[0])
    bins, in_view = [], []
    for scene in scenes:
        box = flag_box(scene.mask)
        apart, seen = distances(box, len(view)), sees_box(view, box)
        scored = np.isin(scene.mask, AMBIGUOUS) & ~(seen & (apart > reach(view)))
        bins.append(np.where(scored, np.searchsorted(edges, apart, side="right") - 1, -1))
        in_view.append(seen & scored)
    return Places(np.stack(bins), np.stack(in_view), reach(view))


def flag_box(mask: np.ndarray) -> tuple[slice, slice]:
    """(S, S) class ids -> the rows and columns of the flag, outside of which a scene equals its twin."""
    places = np.argwhere(np.isin(mask, FLAGS))
    return tuple(
        slice(low, high + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True)
    )


def distances(box: tuple[slice, slice], size: int) -> np.ndarray:
    """-> (S, S): distance to the box in pixels, the larger one of rows and columns."""
    axis = np.arange(size)
    rows, columns = (np.maximum(np.maximum(part.start - axis, axis - part.stop + 1), 0) for part in box)
    return np.maximum(rows[:, None], columns)


@dataclass(frozen=True)
class Task:
    """The settings shared by all networks of a comparison; see the options of `contextseg-context`."""

    scenes: int
    scored: int
    size: int
    nearest: float
    edges: tuple[int, ...]  # lower ends of the distance bins, and the upper end of the last bin
    steps: int
    patience: int
    learning_rate: float
    batch_size: int

    def steps_of(self, network: Network) -> int:
        """The number of steps; more for networks to which most white pixels give no signal about the flag."""
        return self.steps * (1 if network.sees_far else self.patience)

    def scored_scenes(self) -> tuple[SceneBatch, SceneBatch]:
        """Scenes outside of every training set, with both flags."""
        series = (0, self.scored, self.size, self.nearest)
        return draw_near(*series), draw_near(*series, swap_flag=True)

    def training_scenes(self, seed: int) -> SceneBatch:
        return draw_near(seed + 1, self.scenes, self.size, self.nearest)


@dataclass(frozen=True)
class Result:
    """Scores of one network and seed, with one value per distance bin."""

    network: Network
    seed: int
    iou: list[float]  # mean of snow and ice, 0 to 1
    follows: list[float]  # share of pixels whose prediction changes when only the flag is repainted
    shown: tuple[np.ndarray, np.ndarray]  # predictions for the first scenes, with both flags
    parameters: int
    seconds: float  # CPU time of training


def score(
    predictions: tuple[Tensor, Tensor], both: tuple[SceneBatch, SceneBatch], places: Places
) -> list[dict]:
    """Per bin: IoU over the scenes with both flags, and the share of predictions that follow the flag."""
    rows = []
    for number in range(places.bins.max() + 1):
        here = torch.from_numpy(places.bins == number)
        confusion = ConfusionMatrix(len(CLASSES), IGNORE_INDEX)
        for prediction, images in zip(predictions, both, strict=True):
            confusion.update(prediction, torch.where(here, images.labels, IGNORE_INDEX))
        per_class = confusion.compute()["per_class"]
        rows.append(
            {
                "iou": float(np.mean([per_class[label]["iou"] for label in AMBIGUOUS])),
                "follows": float((predictions[0] != predictions[1])[here].float().mean()),
            }
        )
    return rows


def run(task: Task, network: Network, seed: int) -> Result:
    """Trains one network and scores it."""
    images = task.training_scenes(seed)
    started = time.process_time()
    model = train(network, images, task, seed)
    seconds = time.process_time() - started
    both = task.scored_scenes()
    predictions = tuple(predict(model, images) for images in both)
    rows = score(predictions, both, place(both[0].scenes, Network(0).config(), task.edges))
    return Result(
        network,
        seed,
        iou=[row["iou"] for row in rows],
        follows=[row["follows"] for row in rows],
        shown=tuple(prediction[:SHOWN].numpy() for prediction in predictions),
        parameters=model.num_parameters(),
        seconds=seconds,
    )


def run_all(task: Task, networks: list[Network], seeds: int, jobs: int) -> Iterator[Result]:
    """Yields results in the order of completion; with several jobs, each network is trained on one thread."""
    pairs = [(network, seed) for seed in range(seeds) for network in networks]
    if jobs == 1:
        yield from (run(task, *pair) for pair in pairs)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for finished in as_completed(pool.submit(run, task, *pair) for pair in pairs):
            yield finished.result()


def bin_names(edges: Sequence[int]) -> list[str]:
    return [f"{low} to {high - 1}" for low, high in pairwise(edges)]
