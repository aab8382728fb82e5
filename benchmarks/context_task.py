"""contextseg-context: how far from a cue can a network still use it, with and without global attention?

    contextseg-context --output benchmarks/context.md

Trains the same small Unet with different numbers of global tokens, with and without G-MSA, on scenes whose white can be
named by a flag only. Scores are reported over the distance from the flag. Heavy imports come after the command line is
read, so that `--help` answers at once.
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
    from .context_networks import Pictures, Places, Result, Task

PROGRAM = "contextseg-context"
DESCRIPTION = """Train GLAM-Swin-Unet with and without global attention on generated scenes whose labels hang on a far
cue, and write IoU over the distance from the cue into a Markdown page. Takes about half an hour on one core."""

# Global tokens in each window, whether G-MSA lets them talk to each other, and the side of the windows in patches.
# Windows of 12 x 12 cover all of the coarser stage: a control that shows the flag to plain Swin-Unet.
NETWORKS = ((0, True, 2), (10, False, 2), (1, True, 2), (5, True, 2), (10, True, 2), (0, True, 12))


@dataclass
class ContextArguments(CommandOptions):
    scenes: int = option(1500, "scenes to train on")
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
    output: str = option(
        "benchmarks/context.md", "page to write; its pictures go to pictures/ beside it", metavar="FILE"
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
    """Trains and scores network after network, and writes the page after each, so that a stopped run leaves one."""
    from .context_networks import Network, Task, run_all

    task = Task(
        edges=bin_edges(arguments),
        **{name: getattr(arguments, name) for name in Task.__dataclass_fields__ if name != "edges"},
    )
    networks = [Network(*options) for options in NETWORKS]
    results = []
    for result in run_all(task, networks, arguments.seeds, arguments.jobs):
        values = " ".join(cells(result.iou))
        print(f"{result.network.title}, seed {result.seed}: {values} ({result.seconds:.0f} s)", flush=True)
        results.append(result)
        results.sort(key=lambda each: (networks.index(each.network), each.seed))
        write_page(arguments, command, results, task)


def bin_edges(arguments: ContextArguments) -> tuple[int, ...]:
    """Where the columns of the table begin, and the end of the last one."""
    given = arguments.edges.split(",")
    edges = [int(text) for text in given if text.strip().isdecimal()]
    if len(edges) < len(given) or edges != sorted({0, *edges}) or edges[-1] >= arguments.size:
        raise ValueError(
            f"--edges is '{arguments.edges}'. Give growing distances below {arguments.size} that begin with 0, e.g. 0,16,32."
        )
    return (*edges, arguments.size)


def write_page(arguments: ContextArguments, command: str, results: "list[Result]", task: "Task") -> None:
    from ..training.records import environment
    from .context_networks import Network, bin_names, place

    output = Path(arguments.output)
    pictures = output.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    scored = task.scored_scenes()
    places = place(scored[0].scenes, Network(0).config(), task.edges)
    names, found = bin_names(task.edges), environment()
    hardware, versions = found["hardware"], found["versions"]
    draw_curves(results, names, places, pictures / "context_curves.png")
    draw_scenes(results, scored, pictures / "context_scenes.png")
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
    output.write_text(page, encoding="utf-8")


def in_view(places: "Places") -> list[float]:
    """Of each bin, the share of white pixels that can see some of the flag without global attention."""
    return [float(places.in_view[places.bins == number].mean()) for number in range(places.bins.max() + 1)]


def unseen(places: "Places") -> float:
    """The share of all scored pixels that see nothing of the flag without global attention."""
    scored = places.bins >= 0
    return 1 - float(places.in_view.sum() / scored.sum())


def cells(shares: list[float]) -> list[str]:
    return [f"{100 * share:.1f}" if share else "0" for share in shares]


def table(results: "list[Result]", column: str) -> str:
    """Lines of a table: the mean over seeds, and each seed when there are several."""
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
    """IoU over distance, a line for each network, the mean of its seeds."""
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


def draw_scenes(results: "list[Result]", scored: "tuple[Pictures, Pictures]", path: Path) -> None:
    """The first scenes under both flags, and what each network of the first seed makes of them."""
    from PIL import Image

    from ..processing.data.scenes import CLASSES
    from ..processing.overlays import grid_of_pictures, mask_picture
    from .context_networks import SHOWN

    first = [result for result in results if result.seed == 0]
    rows = []
    for number, flag in product(range(SHOWN), range(2)):
        scene = scored[flag].scenes[number]
        masks = [scene.mask, *(result.shown[flag][number] for result in first)]
        pictures = [mask_picture(mask, list(CLASSES.values())) for mask in masks]
        rows.append([Image.fromarray(scene.image), *pictures])
    titles = ["image", "truth", *(result.network.title for result in first)]
    grid_of_pictures(rows, titles, CLASSES, cell_width=180).quantize(128).save(path)


PAGE = """# What only global attention carries

`{command}`

{today}, {machine}, float32, {versions}.

The scenes are those of the demonstration: white expanses that are snow or ice, painted by the same code, and one small flag that tells which
(red: ice, blue: snow). Here the nearest white is at most {nearest:g} pixels from the flag, so every scene has white near the cue and white
far from it. The network is the same in every row but for its global tokens: GLAM-Swin-Unet of two stages (1 and 3 blocks, the
decoder's mirror 1), windows of 2 x 2, patches of 4 pixels, 32 and 64 channels, on images of {size} x {size}. "No G-MSA" is
`use_global_attention=False`, the ablation of the paper's Table 5: tokens gather and give within their windows and never meet. The last row
is a control: plain Swin-Unet with windows of 12 x 12, of which one covers all of the coarser stage.

**Who can see what.** Without G-MSA only windows, shifted windows, and the merging and expansion of patches move information. Followed
through all blocks of encoder and decoder (`benchmarks/receptive_field.py`), a logit behind windows of 2 x 2 sees at most {reach} pixels far, in rows or in columns; the
tests check this against gradients, which are exactly zero beyond and not zero with G-MSA. Distance is measured in the same
way, as the larger of rows and columns. {unseen} % of the white pixels see nothing of the flag without
G-MSA. {scored} scenes that nobody was trained on are scored, each under both flags.

## IoU of snow and ice over the distance from the flag, %

| pixels from the flag | {header} |
|{rule}
| *white that sees the flag without G-MSA* | {view} |
{iou}

![IoU over distance](pictures/context_curves.png)

Who cannot see the flag gives the same answer under both, right under one of them: IoU is then 33.3 % at best, when half of the white is
called ice, and 25 % when all of it gets one name. Grey in the picture: no pixel there sees the flag without G-MSA.

## Answers that change when only the flag is repainted, %

| pixels from the flag | {header} |
|{rule}
{follows}

A perfect network is at 100. 0 without a decimal is exactly none: the flag arrived at no pixel.

![Two scenes under both flags](pictures/context_scenes.png)

## Sizes

| network | parameters | training, processor time |
|---|---|---|
{sizes}

Training: {scenes} scenes, {steps} steps of {batch_size} ({patience} times as many with small windows and without G-MSA), AdamW with learning rate {learning_rate:g}, seeds: {seeds}, scored after
the last step: nothing was chosen by its score. With several seeds, tables give the mean first, then each seed. Processor time also
depends on what else the machine does.

## What this shows, and what not

- Global attention carries a cue across any distance in one step, with one token a window already. Beyond its view no amount of training
  can teach a network without it: the information is not there.
- Inside its view such a network could use the flag, but the flag is often one or two windows away there and has to be handed on from
  block to block. Where the first three columns stay low, that is what training did not find, not a limit of the architecture.
- The control, which is handed the flag by one large window, shows that plain Swin-Unet learns the task with the same training when its view
  allows it. (The work of such windows grows with the square of the image's area.)
- The network is small on purpose. With more stages, blocks or larger windows the view without G-MSA grows (Swin-T's last stage sees
  a whole image of 224 pixels), and then tokens are one way among several. This page says nothing about how much they help there.
- Shifted windows wrap around the border of the image. Swin masks pixels that only the wrapping made neighbours; global tokens are
  not masked and so carry across the border. White that sees the flag only in this way is left out of the tables.
"""


if __name__ == "__main__":
    sys.exit(main())
