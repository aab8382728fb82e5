"""contextseg-benchmark: time and memory of our models compared with others that do the same work.

    contextseg-benchmark --output benchmarks/speed.md

The two models of a comparison run in turn in one process. The comparisons are listed in `comparisons.WORKS`.
Slow imports come after the command line is parsed, so that `--help` answers quickly.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from ..training.option_texts import integers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .comparisons import Pair, Work
    from .measuring import Timing

PROGRAM = "contextseg-benchmark"
DESCRIPTION = """Run our models and others in turn on the same work, for inference and for a training step
(forward, loss, backward), and write median times, ratios and peak memory to a Markdown page."""
LARGE_SIZE = (1024, 2048)
BY_HAND = "<!-- Written by hand: contextseg-benchmark keeps this line and what follows. -->"


@dataclass
class BenchmarkArguments(CommandOptions):
    sizes: str = option("512", "heights and widths of the images, separated by commas", metavar="N,N")
    batches: str = option("1,2", "batch sizes, separated by commas", metavar="N,N")
    attention_sizes: str = option(
        "512,1024,2048", "image sizes at which the memory of global attention is measured", metavar="N,N"
    )
    repeats: int = option(7, "rounds, each of our model and the other one")
    works: str = option("", "comparisons to run, separated by commas (default: all)", metavar="NAME,NAME")
    large: bool = option(
        False, "also run SegDeformer's head, ours alone, on an image of 1024x2048 (takes minutes)"
    )
    device: str = option("cpu", "device to run on: cpu, cuda, ...")
    dtype: Literal["float32", "bfloat16"] = option("float32", "data type; bfloat16 is run by autocast")
    threads: int | None = option(
        None, "CPU threads (default: PyTorch's choice); with 1, times are processor time"
    )
    output: str = option(
        "benchmarks/speed.md",
        "page to write; what was written by hand below the mark of an existing page is kept",
        metavar="FILE",
    )
    quick: bool = option(False, "use very small models and images, to see whether everything still runs")


class Row(NamedTuple):
    """A row in the table of a comparison."""

    mode: str
    size: int
    batch: int
    timing: "Timing"
    memory: tuple[int, int]


def new_parser() -> CommandLine:
    return CommandLine(BenchmarkArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    if arguments.quick:
        arguments.sizes, arguments.batches, arguments.attention_sizes, arguments.repeats = (
            "64",
            "1",
            "64,128",
            1,
        )
    with short_errors(PROGRAM, arguments.traceback):
        works = chosen_works(arguments.works)
        device = prepare(arguments)
        page = [heading(arguments, device, argv)]
        page += [section(work, arguments, device) for work in works]
        if any(work.is_about_glam for work in works):
            page += [attention_section(arguments, device)]
        if arguments.large:
            page += [large_section(arguments, device)]
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(page) + text_by_hand(output))
    print(f"wrote {output}")
    return 0


def text_by_hand(page: Path) -> str:
    """The part of an existing page that starts with the line `BY_HAND`; empty without one."""
    _, mark, text = (page.read_text() if page.exists() else "").partition(BY_HAND)
    return f"\n{mark}{text}" if mark else ""


def chosen_works(names: str) -> "list[Work]":
    from .comparisons import WORKS

    unknown = set(filter(None, names.split(","))) - WORKS.keys()
    if unknown:
        raise ValueError(f"no comparison {', '.join(sorted(unknown))}. Known: {', '.join(WORKS)}.")
    return [WORKS[name] for name in (names.split(",") if names else WORKS)]


def prepare(arguments: BenchmarkArguments) -> "torch.device":
    """Sets threads and the seed; returns the device."""
    import torch

    from .measuring import open_device

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return open_device(arguments.device)


def heading(arguments: BenchmarkArguments, device: "torch.device", argv: list[str] | None) -> str:
    import torch
    import transformers

    from ..training.records import processor_name

    command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{processor_name()}, {torch.get_num_threads()} threads"
    return f"""# Speed and memory

`{command}`

{date.today()}, {machine}, {arguments.dtype}, PyTorch {torch.__version__}, transformers {transformers.__version__}.

Times are medians of {arguments.repeats} rounds, each of ours and then theirs in one process. Ratios are ours / theirs within a
round: median (lowest to highest); below 1 is better. Memory is the peak size of all tensors without the weights; in
training steps it includes gradients. Unless stated otherwise, inference goes from images to masks at image size, and a
training step is forward, loss at image size, and backward.
"""


def section(work: "Work", arguments: BenchmarkArguments, device: "torch.device") -> str:
    """The heading, notes and table of one comparison."""
    pair = work.build(arguments.quick)
    rows = []
    for row in measure(work, pair, arguments, device):
        rows.append(table_row(row))
        print(work.title, rows[-1], sep="\n", flush=True)
    notes, lines = "\n".join(f"- {note}" for note in pair.notes), "\n".join(rows)
    return f"""## {work.title}

{notes}

| mode | image | batch | ours | theirs | time ratio | ours, memory | theirs, memory | memory ratio |
|---|---|---|---|---|---|---|---|---|
{lines}
"""


def measure(
    work: "Work", pair: "Pair", arguments: BenchmarkArguments, device: "torch.device"
) -> Iterator[Row]:
    from .measuring import peak_memory, time_in_turn

    for mode in work.modes:
        is_training = mode == "training step"
        models = [model.to(device).train(is_training) for model in (pair.ours, pair.theirs)]
        sizes, batches = integers(arguments.sizes, "--sizes"), integers(arguments.batches, "--batches")
        for side, batch in product(sizes, batches):
            computed = [work.job(model, batch, (side, side)) for model in models]
            ours, theirs = (
                job(model, compute, arguments, device)
                for model, compute in zip(models, computed, strict=True)
            )
            timing = time_in_turn(ours, theirs, arguments.repeats, device)
            yield Row(mode, side, batch, timing, (peak_memory(ours, device), peak_memory(theirs, device)))


def job(
    model: "nn.Module",
    compute: "Callable[[], object]",
    arguments: BenchmarkArguments,
    device: "torch.device",
) -> Callable[[], None]:
    """The function to measure: `compute`, and for a model in training mode the backward pass of its loss."""
    import torch

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=arguments.dtype == "bfloat16")

    def infer() -> None:
        with torch.inference_mode(), autocast:
            compute()

    def train() -> None:
        with autocast:
            loss = compute()
        loss.backward()
        model.zero_grad()

    return train if model.training else infer


def table_row(row: Row) -> str:
    ours, theirs = row.timing.medians
    ratios, (our_bytes, their_bytes) = row.timing.ratios, row.memory
    return (
        f"| {row.mode} | {row.size}x{row.size} | {row.batch} | {ours:.3f} s | {theirs:.3f} s | **{ratios[len(ratios) // 2]:.2f}** "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {mebibytes(our_bytes)} | {mebibytes(their_bytes)} "
        f"| **{our_bytes / their_bytes:.2f}** |"
    )


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**24 else f"{count / 2**20:,.0f} MiB"


def attention_section(arguments: BenchmarkArguments, device: "torch.device") -> str:
    """Peak memory of the first stage's global attention, and the size of the matrix that it avoids."""
    sizes = integers(arguments.attention_sizes, "--attention-sizes")
    lines = "\n".join(attention_row(size, device) for size in sizes)
    return f"""## Memory of global attention (G-MSA)

The largest global attention of GLAM-Swin-T (first stage, 96 channels, 3 heads, window 7, 10 tokens per window), forward pass
only. The last column is the size of the matrix of attention weights that eager attention would allocate.

| image | global tokens | peak memory | bytes per token | attention matrix |
|---|---|---|---|---|
{lines}
"""


def attention_row(size: int, device: "torch.device") -> str:
    import torch

    from contextseg import GlamSwinConfig
    from contextseg.modeling.attention import Attention

    from .measuring import peak_memory

    config = GlamSwinConfig.preset("tiny", attn_implementation="sdpa")
    heads = config.num_heads[0]
    windows_a_side = -(-size // (config.patch_size * config.window_size))
    count = windows_a_side**2 * config.num_global_tokens
    attention = Attention(config, config.embed_dim, heads).to(device).eval()
    tokens = torch.randn(1, count, config.embed_dim, device=device)
    with torch.inference_mode():
        peak = peak_memory(lambda: attention(tokens), device)
    matrix = heads * count**2 * tokens.element_size()
    return f"| {size}x{size} | {count:,} | {mebibytes(peak)} | {peak / count:,.0f} | {mebibytes(matrix)} |"


def large_section(arguments: BenchmarkArguments, device: "torch.device") -> str:
    """Time and peak memory of SegDeformer's head on a large image, and the size of the matrices it avoids."""
    size = (64, 128) if arguments.quick else LARGE_SIZE
    variants = {
        "as the authors' code": {},
        "as the paper": {"neck": "linear"},
        "as the authors' code, efficient": {"reduction_ratio": 4},
    }
    rows = [large_row(name, options, size, arguments, device) for name, options in variants.items()]
    lines = "\n".join(rows)
    return f"""## SegDeformer's head on an image of {size[0]}x{size[1]}

Inference of our head with a batch of one, measured once. The last column is computed: the size of the two matrices, scores
and their softmax, that plain attention holds at the same time.

| {size[0]}x{size[1]} | time | peak memory | two attention matrices |
|---|---|---|---|
{lines}
"""


def large_row(
    name: str,
    options: dict[str, str | int],
    size: tuple[int, int],
    arguments: BenchmarkArguments,
    device: "torch.device",
) -> str:
    from .comparisons import MIT_STRIDES, head_job, segdeformer_head
    from .measuring import peak_memory, seconds

    head = segdeformer_head(arguments.quick, **options).to(device).eval()
    infer = job(head, head_job(head, 1, size), arguments, device)
    times = []
    peak = peak_memory(lambda: times.append(seconds(infer, device)), device)
    positions = size[0] * size[1] // MIT_STRIDES[0] ** 2
    keys = positions // options.get("reduction_ratio", 1) ** 2
    matrices = 2 * positions * keys * (2 if arguments.dtype == "bfloat16" else 4)
    row = f"| {name} | {times[0]:.1f} s | {mebibytes(peak)} | {mebibytes(matrices)} |"
    print(row, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
