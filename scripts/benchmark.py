"""contextseg-benchmark: time and memory of our models beside transformers' on the same work.

    contextseg-benchmark --output benchmarks/speed.md

Both models of a comparison do the same job in one process, in turn. A further comparison is one entry of `WORKS`.
Heavy imports come after the command line is read, so that `--help` answers at once.
"""

import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .training.arguments import parse, short_errors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .measuring import Timing

PROGRAM = "contextseg-benchmark"
DESCRIPTION = """Run our models and transformers' in turn, for inference and for a training step (forward, loss, backward),
and write medians, ratios and peak memory into a Markdown page."""


@dataclass
class BenchmarkArguments:
    size: int = 512  # height and width of the images
    batches: str = "1,2"  # N,N: batch sizes, separated by commas
    attention_sizes: str = "512,1024,2048"  # N,N: image sizes for the memory of global attention
    repeats: int = 7  # rounds of ours and theirs
    works: str = ""  # NAME,NAME: comparisons to run (default: all)
    # Machine
    device: str = "cpu"  # NAME: where to run: cpu, cuda, ...
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is autocast
    threads: int | None = None  # CPU threads (default: PyTorch's choice)
    # Output
    output: str = "benchmarks/speed.md"  # FILE: the page to write
    quick: bool = False  # very small models and images: does everything still run?
    traceback: bool = False  # show where in the code an error came from


class Pair(NamedTuple):
    """Two models for the same job, and what a reader must know about them."""

    ours: "nn.Module"
    theirs: "nn.Module"
    notes: list[str]


@dataclass(frozen=True)
class Work:
    """One comparison: `build` makes its pair, very small when its argument is true."""

    title: str
    build: Callable[[bool], Pair]


class Row(NamedTuple):
    """One line of a comparison's table."""

    mode: str
    batch: int
    timing: "Timing"
    memory: tuple[int, int]


def upernet_swin(is_small: bool, num_global_tokens: int) -> Pair:
    """GLAM-Swin with UPerNet and transformers' Swin-T with UPerNet, with the same weights where both have them."""
    from tempfile import TemporaryDirectory

    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    from contextseg import GlamSwinForSemanticSegmentation
    from contextseg.modeling.blocks import BatchNorm2d

    tiny = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    small = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
    sizes = small if is_small else tiny
    config = UperNetConfig(
        backbone_config=SwinConfig(**sizes, out_indices=[1, 2, 3, 4], drop_path_rate=0.3),
        num_labels=150,
        hidden_size=16 if is_small else 512,
        auxiliary_in_channels=4 * sizes["embed_dim"],
        auxiliary_channels=16 if is_small else 256,
    )
    theirs = UperNetForSemanticSegmentation(config)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = GlamSwinForSemanticSegmentation.from_swin(
            folder, num_global_tokens=num_global_tokens, drop_path_rate=0.3
        )
    whole_image = theirs.decode_head.psp_modules.blocks[0].layers[1]
    whole_image.batch_norm = BatchNorm2d(whole_image.batch_norm.num_features)
    notes = [
        "Weights: the same in both, except for what only GLAM has (global tokens and their attention). "
        "150 classes, auxiliary head, stochastic depth 0.3.",
        f"Attention: ours `{ours.config._attn_implementation}`, transformers "
        f"`{theirs.backbone.config._attn_implementation}` (each one's default).",
        "transformers refuses a training batch of one (a batch norm that sees one value), so that one norm is ours.",
    ]
    return Pair(ours, theirs, notes)


WORKS = {
    "glam_swin": Work(
        "GLAM-Swin-T + UPerNet with 10 global tokens, beside transformers' plain Swin-T + UPerNet",
        lambda is_small: upernet_swin(is_small, num_global_tokens=10),
    ),
    "swin": Work(
        "Swin-T + UPerNet: ours with 0 global tokens, beside transformers'",
        lambda is_small: upernet_swin(is_small, num_global_tokens=0),
    ),
}


def main(argv: list[str] | None = None) -> int:
    arguments = parse(BenchmarkArguments, argv, PROGRAM, DESCRIPTION)
    if arguments.quick:
        arguments.size, arguments.batches, arguments.attention_sizes, arguments.repeats = 64, "1", "64,128", 1
    with short_errors(PROGRAM, arguments.traceback):
        works = chosen_works(arguments.works)
        device = open_device(arguments)
        page = [heading(arguments, device, argv)]
        page += [section(work, arguments, device) for work in works]
        page += [attention_section(arguments, device)]
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(page))
    print(f"wrote {output}")
    return 0


def chosen_works(names: str) -> list[Work]:
    unknown = set(filter(None, names.split(","))) - WORKS.keys()
    if unknown:
        raise ValueError(f"no comparison {', '.join(sorted(unknown))}. Known: {', '.join(WORKS)}.")
    return [WORKS[name] for name in (names.split(",") if names else WORKS)]


def integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} is '{text}'. Give whole numbers separated by commas, e.g. 1,2.") from None


def open_device(arguments: BenchmarkArguments) -> "torch.device":
    import torch

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no CUDA device. Leave out --device, or install PyTorch for CUDA.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return device


def heading(arguments: BenchmarkArguments, device: "torch.device", argv: list[str] | None) -> str:
    import torch
    import transformers

    command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{processor_name()}, {torch.get_num_threads()} threads"
    return f"""# Speed and memory

`{command}`

{date.today()}, {machine}, {arguments.dtype}, PyTorch {torch.__version__}, transformers {transformers.__version__}.

Times are medians of {arguments.repeats} rounds, ours and theirs in turn in one process. Ratios are ours / theirs of the same
round: median (lowest to highest); below 1 is better. Memory is the most bytes in tensors at any moment beyond the weights, in a
training step gradients included. Inference is from images to masks of their size; a training step is forward, loss at
image size, backward.
"""


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def section(work: Work, arguments: BenchmarkArguments, device: "torch.device") -> str:
    """The heading, notes and table of one comparison."""
    pair = work.build(arguments.quick)
    rows = []
    for row in measure(pair, arguments, device):
        rows.append(table_row(row))
        print(work.title, rows[-1], sep="\n", flush=True)
    notes, lines = "\n".join(f"- {note}" for note in pair.notes), "\n".join(rows)
    return f"""## {work.title}

{notes}

| {arguments.size}x{arguments.size} | batch | ours | theirs | time ratio | ours, memory | theirs, memory | memory ratio |
|---|---|---|---|---|---|---|---|
{lines}
"""


def measure(pair: Pair, arguments: BenchmarkArguments, device: "torch.device") -> Iterator[Row]:
    from .measuring import peak_memory, time_in_turn

    for mode, is_training in (("inference", False), ("training step", True)):
        models = [model.to(device).train(is_training) for model in (pair.ours, pair.theirs)]
        for batch in integers(arguments.batches, "--batches"):
            ours, theirs = (job(model, batch, arguments, device) for model in models)
            timing = time_in_turn(ours, theirs, arguments.repeats, device)
            yield Row(mode, batch, timing, (peak_memory(ours, device), peak_memory(theirs, device)))


def job(
    model: "nn.Module", batch: int, arguments: BenchmarkArguments, device: "torch.device"
) -> Callable[[], None]:
    """What is measured: images to masks, or with a model in training mode the loss and the gradients."""
    import torch

    side = arguments.size
    pixels = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(model.config.num_labels, (batch, side, side), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=arguments.dtype == "bfloat16")

    def infer() -> None:
        with torch.inference_mode(), autocast:
            masks(model(pixel_values=pixels).logits, (side, side))

    def train() -> None:
        with autocast:
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        model.zero_grad()

    return train if model.training else infer


def masks(logits: "torch.Tensor", size: tuple[int, int]) -> "list[torch.Tensor]":
    """(B, K, h, w) -> B masks (H, W). transformers' models enlarge the logits themselves, ours leave that to this step."""
    from contextseg.processing.logits_to_masks import upsampled_argmax

    if logits.shape[-2:] == size:
        return list(logits.argmax(dim=1))
    return [upsampled_argmax(image_logits, size) for image_logits in logits]


def table_row(row: Row) -> str:
    ours, theirs = row.timing.medians
    ratios, (our_bytes, their_bytes) = row.timing.ratios, row.memory
    return (
        f"| {row.mode} | {row.batch} | {ours:.3f} s | {theirs:.3f} s | **{ratios[len(ratios) // 2]:.2f}** "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {mebibytes(our_bytes)} | {mebibytes(their_bytes)} "
        f"| **{our_bytes / their_bytes:.2f}** |"
    )


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**24 else f"{count / 2**20:,.0f} MiB"


def attention_section(arguments: BenchmarkArguments, device: "torch.device") -> str:
    """Peak memory of the first stage's global attention alone, beside the size of the matrix that it never builds."""
    sizes = integers(arguments.attention_sizes, "--attention-sizes")
    lines = "\n".join(attention_row(size, device) for size in sizes)
    return f"""## Memory of global attention (G-MSA)

The largest global attention of GLAM-Swin-T (first stage, 96 channels, 3 heads, window 7, 10 tokens a window), forward pass
alone. The last column is the one matrix of attention weights that eager attention would hold.

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


if __name__ == "__main__":
    sys.exit(main())
