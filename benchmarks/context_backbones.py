"""`contextseg-context --backbone NAME`: the task of the distant cue for GLAM in encoders of transformers and timm.

Networks are small and see little without G-MSA: where the encoder has global operations of its own (Twins' sub-sampled
attention, MaxViT's grid attention and squeeze-and-excitation), these are taken out, so that windows are all that is left.

Legend: S side of a scene in pixels, C channels.
"""

import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from timm.layers import SqueezeExcite
from timm.models import is_model, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.nest import Nest
from timm.models.twins import GlobalSubSampleAttn
from torch import Tensor, nn
from transformers import PreTrainedConfig, SwinConfig, Swinv2Config, TimmBackboneConfig

from ..configuration.configuration_glam import GlamConfig
from ..configuration.configuration_segdeformer import SegDeformerConfig
from ..modeling.modeling_segdeformer import SegDeformerForSemanticSegmentation
from ..processing.data.scenes import AMBIGUOUS, CLASSES, FLAGS
from ..training.records import environment
from .context_networks import (
    FLAG_WEIGHT,
    OTHER_ENCODERS,
    Places,
    SceneBatch,
    Task,
    distances,
    draw_near,
    flag_box,
    predict,
    score,
    trained,
)

DIMS, HEADS, TOKENS, INITIAL_STD = (32, 64), (2, 4), 10, 0.15
NEST = "nest_of_the_context_task"


def swin(_side: int) -> PreTrainedConfig:
    return SwinConfig(embed_dim=DIMS[0], depths=[1, 3], num_heads=HEADS, window_size=2, **TWO_STAGES)


def swinv2(side: int) -> PreTrainedConfig:
    sizes = {"embed_dim": DIMS[0], "depths": [1, 3], "num_heads": HEADS, "window_size": 2, "image_size": side}
    return Swinv2Config(**sizes, **TWO_STAGES)


def twins(_side: int) -> PreTrainedConfig:
    sizes = {"embed_dims": DIMS, "depths": (1, 3), "num_heads": HEADS, "wss": (2, 2)}
    return timm_encoder("twins_svt_small", [0, 1], **sizes, sr_ratios=(2, 1), mlp_ratios=(4, 4))


def maxvit(side: int) -> PreTrainedConfig:
    windows = {"transformer_window_size": (2, 2), "transformer_grid_size": (2, 2), "img_size": side}
    sizes = {"embed_dim": DIMS, "depths": (1, 3), "block_type": ("M", "M"), "stem_width": 16}
    return timm_encoder("maxvit_tiny_tf_224", [1, 2], **sizes, **windows)


def nest(side: int) -> PreTrainedConfig:
    """The first two of three levels, with 4 x 4 and 2 x 2 windows; the third would be one window."""
    if not is_model(NEST):
        register_model(nest_of_the_context_task)
    return timm_encoder(NEST, [0, 1], img_size=side, drop_path_rate=0.0)


def nest_of_the_context_task(pretrained: bool = False, **options: object) -> nn.Module:
    sizes = {"embed_dims": (*DIMS, DIMS[1]), "depths": (1, 3, 1), "num_heads": (*HEADS, HEADS[1])}
    return build_model_with_cfg(
        Nest, NEST, pretrained, feature_cfg={"flatten_sequential": True}, **sizes, **options
    )


def timm_encoder(name: str, out_indices: list[int], **options: object) -> PreTrainedConfig:
    return TimmBackboneConfig(backbone=name, out_indices=out_indices, model_kwargs=options)


TWO_STAGES = {"out_indices": [1, 2], "drop_path_rate": 0.0}
BACKBONES: dict[str, Callable[[int], PreTrainedConfig]] = {
    "swin": swin,
    "swinv2": swinv2,
    "twins": twins,
    "maxvit": maxvit,
    "nest": nest,
}


class Nothing(nn.Module):
    """In place of an attention: adds nothing."""

    def forward(self, tokens: Tensor, *_: object) -> Tensor:
        """(..., C) -> zeros (..., C)."""
        return torch.zeros_like(tokens)


def build(backbone: str, num_tokens: int, side: int, seed: int) -> nn.Module:
    """A segmenter on the encoder, with local layers only besides windows and global tokens."""
    torch.manual_seed(seed)
    weights = [FLAG_WEIGHT if label in FLAGS else 1 for label in range(len(CLASSES))]
    config = SegDeformerConfig(
        backbone_config=GlamConfig(backbone_config=BACKBONES[backbone](side), num_global_tokens=num_tokens),
        decoder="semantic_fpn",
        decoder_hidden_size=32,
        num_labels=len(CLASSES),
        class_weights=weights,
    )
    model = SegDeformerForSemanticSegmentation(config)
    for module in list(model.backbone.modules()):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=INITIAL_STD)  # as in the other networks of this task
        for name, child in module.named_children():
            if isinstance(child, GlobalSubSampleAttn):
                setattr(module, name, Nothing())
            if isinstance(child, SqueezeExcite) or name == "attn_grid":
                setattr(module, name, nn.Identity())
    return model


def share_seen(model: nn.Module, side: int) -> float:
    """The share of the pixels on which the logits of the top left corner depend: those with a gradient that is not 0."""
    pixels = torch.randn(1, 3, side, side, requires_grad=True)
    model.eval()(pixel_values=pixels).logits[..., 0, 0].square().sum().backward()
    return pixels.grad.abs().amax(dim=(0, 1)).count_nonzero().item() / side**2


def enlarged_predictions(model: nn.Module, images: SceneBatch) -> Tensor:
    """-> (N, S, S) class ids; those of the logits' stride are repeated, which mixes no positions."""
    stride = model.config.logits_stride
    return predict(model, images).repeat_interleave(stride, dim=1).repeat_interleave(stride, dim=2)


def places_of(batch: SceneBatch, edges: tuple[int, ...]) -> Places:
    """White pixels by distance from the flag."""
    bins = []
    for scene in batch.scenes:
        apart = distances(flag_box(scene.mask), len(scene.mask))
        number = np.searchsorted(edges, apart, side="right") - 1
        bins.append(np.where(np.isin(scene.mask, AMBIGUOUS), number, -1))
    return Places(np.stack(bins), np.zeros(np.shape(bins), bool), 0)


def compare_backbone(backbone: str, task: Task, seeds: int, output: Path, command: str) -> None:
    """Trains the encoder with and without tokens, and writes its rows to the page."""
    both, rows = task.scored_scenes(), []
    for num_tokens in (0, TOKENS):
        results = []
        for seed in range(seeds):
            model = build(backbone, num_tokens, task.size, seed)
            seen = share_seen(model, task.size)
            places = places_of(both[0], task.edges)
            start = time.process_time()
            trained(model, draw_near(seed + 1, task.scenes, task.size, task.nearest), task, seed, task.steps)
            seconds = time.process_time() - start
            found = score(tuple(enlarged_predictions(model, images) for images in both), both, places)
            results.append((seen, found, seconds))
            print(
                backbone,
                num_tokens,
                seed,
                [f"{100 * row['iou']:.0f}" for row in found],
                f"{seconds:.0f} s",
                flush=True,
            )
        rows.append(table_row(backbone, num_tokens, model, results))
    write_rows(backbone, rows, task, output, command)


def table_row(backbone: str, num_tokens: int, model: nn.Module, results: list[tuple]) -> str:
    columns = zip(*(found for _, found, _ in results), strict=True)
    cells = [
        f"{100 * mean(row['iou'] for row in column):.1f} ({100 * mean(row['follows'] for row in column):.1f})"
        for column in columns
    ]
    name = f"{backbone}, {num_tokens} tokens" if num_tokens else f"{backbone}, none"
    seconds = mean(seconds for *_, seconds in results)
    return f"| {name} | {100 * results[0][0]:.0f} % | {' | '.join(cells)} | {model.num_parameters():,} | {seconds:.0f} s |"


def write_rows(backbone: str, rows: list[str], task: Task, output: Path, command: str) -> None:
    """Replaces the rows of this encoder in the last section of the page."""
    page = output.read_text(encoding="utf-8") if output.exists() else ""
    before, _, section = page.partition(OTHER_ENCODERS)
    kept = [
        line
        for line in section.splitlines()
        if line.startswith("| ") and "tokens |" not in line.split(",")[0]
    ]
    kept = [line for line in kept if not line.startswith(("| encoder", f"| {backbone},"))]
    names = [f"{low} to {high - 1}" for low, high in zip(task.edges[:-1], task.edges[1:], strict=True)]
    head = f"| encoder, tokens | seen | {' | '.join(names)} | parameters | training, CPU time |"
    rule = "|" + "---|" * (len(names) + 4)
    hardware = environment()["hardware"]["processor"]
    text = SECTION.format(command=command, today=date.today(), machine=hardware, **vars(task))
    lines = [head, rule, *sorted(kept + rows, key=lambda row: list(BACKBONES).index(row[2:].split(",")[0]))]
    output.write_text(
        f"{before.rstrip()}\n{OTHER_ENCODERS}\n{text}\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )


SECTION = """`{command}`, once for each encoder; the last run {today}, one thread of {machine}.

The same task on images of {size} x {size}, for `GlamConfig` over small encoders of other libraries (two stages of strides 4 and 8, 1 and 3
blocks, 32 and 64 channels, windows of 2 x 2; NesT's are 6 x 6) under Semantic FPN. Twins' sub-sampled attention, MaxViT's grid attention and its
squeeze-and-excitation, which see the whole image, are taken out: what remains are windows, local convolutions, and global tokens.

"Seen" is the share of pixels on which the logits of the top left corner depend: for all others, the gradient is exactly zero (shifted windows
wrap around the border, where masks leave 1e-44). The columns are pixels from the flag: IoU of snow and ice in %, at most 33.3 for a network that
cannot see the flag, and in parentheses the share of predictions that change when only the flag is repainted, in %. {scenes} scenes, 300 steps
of {batch_size} (900 in Twins, where a single block exchanges tokens), {scored} scored scenes, each with both flags; one seed or the mean of several.
"""
