"""Which encoders work? Tries every kind that transformers and timm offer and writes docs/reference/encoders.md.

    python -m contextseg.benchmarks.encoder_matrix

Nothing is downloaded; weights are random. Each kind runs in a process of its own, with a limit on its time. With
`--only resnet,swin` the rows of these kinds are replaced in a page of the same versions.
"""

import multiprocessing
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ..training.command_line import CommandLine, CommandOptions, option, short_errors

PROGRAM = "python -m contextseg.benchmarks.encoder_matrix"
DESCRIPTION = "Try every kind of encoder of transformers and timm, and write the page of those that work."
LIBRARIES = ("transformers", "timm")
SECONDS = 600  # limit of each kind; most take less than 10 on an idle core
PAGE = """# Which encoders work

For `backbone_config` of `SegDeformerConfig` and `MaskRcnnConfig`, and for `--init-from`: see [Use any backbone](../how-to/any-backbone.md).
Below is every type of AutoBackbone in transformers {transformers}, with SegFormer's encoder, and one model of each family of timm {timm}.
Besides, there are our own: `glam_swin`, `maformer` and `cswin`, for images of any size.

- **works**: images of any size; they are padded where the encoder needs it.
- **one size only**: smaller images are padded to that size, larger ones are refused. Crop images, or build the encoder for a larger size.
- **refused**: building the model raises an error that says why.

Each encoder was built small and with random weights, under the decoder of SegDeformer and under UPerNet. It ran on images of two sizes,
one of which is not a multiple of any patch. In a training step on one image, unless the remark says two, every parameter had a gradient,
before and after saving and loading, which kept all tensors and the logits. Strides are those of the feature maps that are used by default.

`python -m contextseg.benchmarks.encoder_matrix` writes this page for the versions that are installed.

## transformers

{transformers_count}

| type | result | strides | remark |
|---|---|---|---|
{transformers_rows}

## timm

{timm_count} Models of a family have the same code and differ in size; a variant may differ from the one tried here.

| family (module of timm) | model tried | result | strides | remark |
|---|---|---|---|---|
{timm_rows}
"""


@dataclass
class MatrixArguments(CommandOptions):
    output: str = option("docs/reference/encoders.md", "page to write", metavar="FILE")
    only: str | None = option(
        None, "try only these types and families, and keep the other rows of the page", metavar="NAME,NAME"
    )


class Row(NamedTuple):
    """One line of a table; `tried` is the name of the model if it is not the type itself."""

    library: str
    kind: str
    tried: str
    result: str
    strides: str
    remark: str


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(MatrixArguments, PROGRAM, DESCRIPTION).arguments(argv)
    output, only = Path(arguments.output), arguments.only.split(",") if arguments.only else None
    with short_errors(PROGRAM, arguments.traceback):
        rows = {(row.library, row.kind): row for row in (kept_rows(output) if only else [])}
        for row in tried(only):
            print(*row, sep=" | ", flush=True)
            rows[row.library, row.kind] = row
        output.write_text(page(list(rows.values())), encoding="utf-8")
    print(f"wrote {output}")
    return 0


def kept_rows(file: Path) -> list[Row]:
    """The rows of a page. Raises ValueError if it is about other versions than those installed."""
    text = file.read_text(encoding="utf-8")
    about = re.search(r"in transformers (\S+), with .* of timm (\S+)\.", text)
    installed = tuple(version(library) for library in LIBRARIES)
    if about is None or about.groups() != installed:
        raise ValueError(
            f"{file} is not about the installed versions of transformers and timm, {' and '.join(installed)}. Write it anew, "
            "without --only."
        )
    return read_rows(text)


def read_rows(text: str) -> list[Row]:
    """The rows of the tables of a page."""
    rows = []
    for library in LIBRARIES:
        for found in text.partition(f"## {library}\n")[2].partition("\n## ")[0].splitlines():
            if found.startswith("| `"):
                kind, *others = (cell.strip("`") for cell in found[2:-2].split(" | "))
                rows.append(Row(library, kind, *([kind] if library == "transformers" else []), *others))
    return rows


def tried(only: list[str] | None = None) -> Iterator[Row]:
    """Tries all kinds, or those named, each in a process of its own."""
    from .encoder_configs import timm_families, transformers_types

    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([f"{__package__}.encoder_trial"])  # imports torch once
    kinds = {"transformers": transformers_types(), "timm": timm_families()}
    for library, names in kinds.items():
        for name in names:
            if only is not None and name not in only:
                continue
            receiver, sender = processes.Pipe(duplex=False)
            process = processes.Process(target=answer, args=(sender, library, name))
            process.start()
            sender.close()
            yield received(
                receiver, Row(library, name, "", "fails", "", "The process ended without an answer.")
            )
            process.kill()
            process.join()


def answer(connection: Connection, library: str, name: str) -> None:
    """Tries one kind and sends its row; runs in a process of its own."""
    import torch

    from .encoder_trial import try_kind

    torch.set_num_threads(1)
    found, verdict = try_kind(library, name)
    strides = ", ".join(str(stride) for stride in verdict.strides)
    connection.send(Row(library, name, found, verdict.result, strides, verdict.reason))


def received(connection: Connection, silent: Row) -> Row:
    """The row that a process sends, or `silent` with a remark if it sends none."""
    if not connection.poll(SECONDS):
        return silent._replace(remark=f"No answer within {SECONDS} seconds.")
    try:
        return connection.recv()
    except EOFError:
        return silent


def page(rows: list[Row]) -> str:
    """The page of the documentation."""
    parts = {}
    for library in LIBRARIES:
        own = [row for row in rows if row.library == library]
        parts[library] = version(library)
        parts[f"{library}_count"] = counts(own)
        parts[f"{library}_rows"] = "\n".join(line(row) for row in own)
    return PAGE.format(**parts)


def counts(rows: list[Row]) -> str:
    """Such as "32 rows: works 29, one size only 2, refused 1."."""
    results = [row.result for row in rows]
    found = [
        f"{result} {results.count(result)}"
        for result in sorted(set(results), key=results.count, reverse=True)
    ]
    return f"{len(rows)} rows: {', '.join(found)}."


def line(row: Row) -> str:
    names = [row.kind] if row.library == "transformers" else [row.kind, row.tried]
    cells = [*(f"`{name}`" for name in names), row.result, row.strides, row.remark.replace("|", "/")]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
