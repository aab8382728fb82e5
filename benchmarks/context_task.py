"""contextseg-context: the distance at which networks with and without global attention can use a cue.

    contextseg-context --output benchmarks/context.md

Trains the same small Unet with different numbers of global tokens, with and without G-MSA, on scenes in which
only a flag tells the class of the white pixels. Scores are reported by distance from the flag. Slow imports
come after the command line is parsed, so that `--help` answers quickly.
"""

import shlex
import sys
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from ..training.command_line import CommandLine, CommandOptions, option, short_errors

if TYPE_CHECKING:
    from .context_networks import Places, Result, SceneBatch, Task

PROGRAM = "contextseg-context"
DESCRIPTION = """Train GLAM-Swin-Unet with and without global attention on generated scenes whose labels
depend on a distant cue, and write the IoU by distance from the cue to a Markdown page. Takes about half an hour on one
core."""

# Global tokens per window, whether G-MSA connects them, and the side of the windows in patches. Windows of
# 12 x 12 cover the whole coarser stage: a control in which plain Swin-Unet sees the flag.
NETWORKS = ((0, True, 2), (10, False, 2), (1, True, 2), (5, True, 2), (10, True, 2), (0, True, 12))


@dataclass
class ContextArguments(CommandOptions):
    scenes: int = option(1500, "number of training scenes")
    scored: int = option(200, "scenes to score, each under both flags")
    size: int = option(96, "side of a scene in pixels")
    nearest: float = option(12, "largest distance in pixels from the flag to the nearest white area")
    edges: str = option(
        "0,16,24,32,40,48", "distances at which the columns of the table begin", metavar="N,N"
    )
    steps: int = option(700, "optimizer steps")
    patience: int = option(
        2, "factor of the steps of networks with small windows and without global attention"
    )
    batch_size: int = option(8, "scenes in each step")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    seeds: int = option(
        2, "repetitions with other training scenes, weights and order, and the same scored scenes"
    )
    jobs: int = option(1, "networks that are trained at the same time, each on one thread")
    backbone: str | None = option(
        None, "small encoder to put GLAM into instead: swin, swinv2, twins, maxvit or nest", metavar="NAME"
    )
    output: str = option(
        "benchmarks/context.md", "page to write; its images go to images/ beside it", metavar="FILE"
    )
    quick: bool = option(False, "use few steps and scenes, to see whether everything still runs")


def new_parser() -> CommandLine:
    return CommandLine(ContextArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    if arguments.quick:
        arguments.scenes, arguments.scored, arguments.steps, arguments.seeds = 8, 4, 2, 1
    command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    with short_errors(PROGRAM, arguments.traceback):
        compare(arguments, command)
    print(f"wrote {arguments.output}")
    return 0


def compare(arguments: ContextArguments, command: str) -> None:
    """Trains and scores all networks. The page is written after each, so an interrupted run leaves one."""
    from .context_networks import Network, Task, run_all

    task = Task(
        edges=bin_edges(arguments),
        **{name: getattr(arguments, name) for name in Task.__dataclass_fields__ if name != "edges"},
    )
    if arguments.backbone is not None:
        from ..configuration.checked_config import choose
        from .context_backbones import BACKBONES, compare_backbone

        choose("encoder", arguments.backbone, BACKBONES)
        compare_backbone(arguments.backbone, task, arguments.seeds, Path(arguments.output), command)
        return
    networks = [Network(*options) for options in NETWORKS]
    results = []
    for result in run_all(task, networks, arguments.seeds, arguments.jobs):
        values = " ".join(cells(result.iou))
        print(f"{result.network.title}, seed {result.seed}: {values} ({result.seconds:.0f} s)", flush=True)
        results.append(result)
        results.sort(key=lambda each: (networks.index(each.network), each.seed))
        write_page(arguments, command, results, task)


def bin_edges(arguments: ContextArguments) -> tuple[int, ...]:
    """The lower ends of the columns of the table, and the upper end of the last one."""
    given = arguments.edges.split(",")
    edges = [int(text) for text in given if text.strip().isdecimal()]
    if len(edges) < len(given) or edges != sorted({0, *edges}) or edges[-1] >= arguments.size:
        raise ValueError(
            f"--edges is '{arguments.edges}'. Give increasing distances below {arguments.size} that start with 0, "
            "e.g. 0,16,32."
        )
    return (*edges, arguments.size)


def write_page(arguments: ContextArguments, command: str, results: "list[Result]", task: "Task") -> None:
    from ..training.records import environment
    from .context_networks import OTHER_ENCODERS, Network, bin_names, place

    output = Path(arguments.output)
    images = output.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    scored = task.scored_scenes()
    places = place(scored[0].scenes, Network(0).config(), task.edges)
    names, found = bin_names(task.edges), environment()
    hardware, versions = found["hardware"], found["versions"]
    draw_curves(results, names, places, images / "context_curves.png")
    draw_scenes(results, scored, images / "context_scenes.png")
    page = PAGE.format(
        command=command,
        today=date.today(),
        machine=f"one thread of {hardware['processor']} for each network",
        versions=", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers")),
        header=" | ".join(names),
        rule="---|" * (len(names) + 1),
        view=" | ".join(cells(in_view(places))),
        unseen=f"{100 * unseen(places):.0f}",
        iou=table(results, "iou"),
        follows=table(results, "follows"),
        sizes=size_rows(results),
        reach=places.reach,
        **vars(arguments),
    )
    old = output.read_text(encoding="utf-8") if output.exists() else ""
    _, title, other_encoders = old.partition(OTHER_ENCODERS)  # which are measured by themselves
    output.write_text(page + title + other_encoders, encoding="utf-8")


def in_view(places: "Places") -> list[float]:
    """Per bin: the share of white pixels that can see part of the flag without global attention."""
    return [float(places.in_view[places.bins == number].mean()) for number in range(places.bins.max() + 1)]


def unseen(places: "Places") -> float:
    """The share of all scored pixels that cannot see the flag without global attention."""
    scored = places.bins >= 0
    return 1 - float(places.in_view.sum() / scored.sum())


def cells(shares: list[float]) -> list[str]:
    return [f"{100 * share:.1f}" if share else "0" for share in shares]


def table(results: "list[Result]", column: str) -> str:
    """The rows of a table: the mean over seeds, followed by each seed if there are several."""
    lines = []
    for network in dict.fromkeys(result.network for result in results):
        seeds = [getattr(result, column) for result in results if result.network == network]
        values = cells([mean(values) for values in zip(*seeds, strict=True)])
        if len(seeds) > 1:
            each = [" / ".join(cells(values)) for values in zip(*seeds, strict=True)]
            values = [f"**{value}** ({text})" for value, text in zip(values, each, strict=True)]
        lines.append(f"| {network.title} | {' | '.join(values)} |")
    return "\n".join(lines)


def size_rows(results: "list[Result]") -> str:
    lines = []
    for network in dict.fromkeys(result.network for result in results):
        own = [result for result in results if result.network == network]
        seconds = mean(result.seconds for result in own)
        lines.append(f"| {network.title} | {own[0].parameters:,} | {seconds:.0f} s |")
    return "\n".join(lines)


def draw_curves(results: "list[Result]", names: list[str], places: "Places", path: Path) -> None:
    """Plots IoU over distance, with one line per network, the mean of its seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for network in dict.fromkeys(result.network for result in results):
        seeds = [result.iou for result in results if result.network == network]
        values = [100 * mean(values) for values in zip(*seeds, strict=True)]
        line = "-" if network.sees_far else "--"
        axes.plot(names, values, marker="o", linestyle=line, label=network.title)
    axes.axhline(100 / 3, color="#999999", linewidth=1, linestyle=":")
    axes.text(len(names) - 1, 34.5, "most without the cue", color="#777777", ha="right", fontsize=8)
    blind = next((number for number, share in enumerate(in_view(places)) if not share), None)
    if blind is not None:
        axes.axvspan(blind - 0.5, len(names) - 0.5, color="#f2f2f2", zorder=0)
    axes.set(xlabel="pixels from the flag", ylabel="IoU of snow and ice, %", ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def draw_scenes(results: "list[Result]", scored: "tuple[SceneBatch, SceneBatch]", path: Path) -> None:
    """Draws the first scenes with both flags, and the predictions of all networks for the first seed."""
    from PIL import Image

    from ..processing.data.scenes import CLASSES
    from ..processing.overlays import image_grid, mask_image
    from .context_networks import SHOWN

    first = [result for result in results if result.seed == 0]
    rows = []
    for number, flag in product(range(SHOWN), range(2)):
        scene = scored[flag].scenes[number]
        masks = [scene.mask, *(result.shown[flag][number] for result in first)]
        images = [mask_image(mask, list(CLASSES.values())) for mask in masks]
        rows.append([Image.fromarray(scene.image), *images])
    titles = ["image", "truth", *(result.network.title for result in first)]
    image_grid(rows, titles, CLASSES, cell_width=180).quantize(128).save(path)


PAGE = """# What only global attention carries

`{command}`

{today}, {machine}, float32, {versions}.

The scenes are those of the demo: white areas are either snow or ice and look alike, and one small flag tells which (red: ice, blue: snow).
Here the nearest white pixel is at most {nearest:g} pixels from the flag, so every scene has white areas both near the cue and far from it.
The network is the same in every row except for its global tokens: GLAM-Swin-Unet with two stages (1 and 3 blocks in the encoder, 1 in the
decoder), windows of 2 x 2, patches of 4 pixels, 32 and 64 channels, on images of {size} x {size}. "No G-MSA" is
`use_global_attention=False`, the ablation in the paper's Table 5: tokens exchange information with their own window, but not with each
other. The last row is a control: plain Swin-Unet with windows of 12 x 12, one of which covers the whole coarser stage.

**Receptive field.** Without G-MSA, information moves only through windows, shifted windows, patch merging and patch expansion. Computed
through all blocks of encoder and decoder (`benchmarks/receptive_field.py`), a logit behind windows of 2 x 2 sees at most {reach} pixels far, in
rows or in columns. The tests check this against gradients: beyond this distance they are exactly zero without G-MSA, and nonzero with it.
Distance is measured in the same way, as the larger of rows and columns. Without G-MSA, {unseen} % of the white pixels cannot see any part of
the flag. The scores are from {scored} scenes that were not used for training, each with both flags.

## IoU of snow and ice by distance from the flag, %

| pixels from the flag | {header} |
|{rule}
| *white that sees the flag without G-MSA* | {view} |
{iou}

![IoU over distance](images/context_curves.png)

A model that cannot see the flag predicts the same for both flags, which is correct for one of them. Its IoU is then at most 33.3 %, when it
labels half of the white pixels as ice, and 25 % when it gives all of them the same label. Gray in the figure: no pixel there sees the flag
without G-MSA.

## Predictions that change when only the flag is repainted, %

| pixels from the flag | {header} |
|{rule}
{follows}

A perfect network scores 100. A 0 without decimals is exactly zero: the flag reached no pixel.

![Two scenes with both flags](images/context_scenes.png)

## Sizes

| network | parameters | training, CPU time |
|---|---|---|
{sizes}

Training: {scenes} scenes, {steps} steps of {batch_size} ({patience} times as many with small windows and without G-MSA), AdamW with learning rate {learning_rate:g}, seeds: {seeds}, scored after
the last step, without selecting a checkpoint. With several seeds, tables give the mean, followed by each seed in parentheses. CPU time also
depends on the other load of the machine.

## What this shows, and what it does not

- Global attention carries a cue across any distance in one step, even with one token per window. Without it, no amount of training helps
  beyond the receptive field, because the information is not there.
- Inside its receptive field, a network without G-MSA could use the flag, but there the flag is often one or two windows away and has to be
  passed on from block to block. Low values in the first three columns are a result of training, not a limit of the architecture.
- The control, which sees the flag through one large window, shows that plain Swin-Unet learns the task with the same training if its
  receptive field allows it. (The cost of such windows grows with the square of the image area.)
- The network is small on purpose. With more stages, more blocks or larger windows the receptive field without G-MSA grows (Swin-T's last
  stage sees a whole image of 224 pixels), and tokens are then one option among several. This page does not show how much they help there.
- Shifted windows wrap around the border of the image. Swin masks pixels that are adjacent only because of the cyclic shift; global tokens
  are not masked, so they carry information across the border. White pixels that see the flag only in this way are left out of the tables.
"""


if __name__ == "__main__":
    sys.exit(main())
