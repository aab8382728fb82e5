"""Rows of `families.py`: the file of recorded ratios, what is worse than they are, and the page."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ALLOWED = 1.1  # times the recorded ratio
PAGE = """# Every family beside another library's network

`python -m contextseg.benchmarks.families --record` (`make bench` compares with these ratios, and fails if one is more than a tenth worse)

{machines}

Each row is measured in one process on one thread: our model, then the others, then ours again, with a batch of one, in seconds of processor time. The **time ratio** is ours / theirs within a
round, the median (lowest to highest, equal after a single round); below 1 is better. Beside it stands its limit, the **ratio of multiply-adds**, which the time ratio has if both
run at the same rate; below it, ours does more work per second. Memory is the peak of all tensors without the weights. Inference goes from images to
masks at image size; a training step is forward, loss and backward. Weights are random.

A counterpart has the widths, depths and heads of ours. *transformers Swin + UPerNet* stands beside CSWin because no library has CSWin, and
*SegFormer* beside MAFormer. Models with two scales are measured on a crop and its context, the others beside them on a batch of both: CASWiT beside
two images under Swin + UPerNet, relay tokens as encoders alone. smp is segmentation_models_pytorch; its UPerNet has no auxiliary head. MONAI's
SwinUNETR has patches of 2 x 2 x 2 voxels, four times as many cells as the 2 x 4 x 4 of nnFormer: most of that ratio is the design. nnFormer's published width
is 192, SwinUNETR's 48. Mask R-CNN is missing, because its code is torchvision's.

Relay tokens pass the context and then the crop, each a batch of one beside the other's batch of two, which costs small models most. A tenth of the training step of
`swinv2_small` at 256 x 256 is products with attention weights below the smallest normal float, which the mask of shifted windows leaves (-100, as in the
authors' code; transformers adds it twice).

| model | size | beside | mode | time ratio | multiply-adds ratio | memory ratio | time | memory | multiply-adds | parameters |
|---|---|---|---|---|---|---|---|---|---|---|
{lines}
"""


@dataclass(frozen=True)
class Row:
    """Our model beside another; pairs of numbers are ours and theirs."""

    model: str
    beside: str
    size: str
    mode: str
    time_ratio: float
    time_range: tuple[float, float]
    seconds: tuple[float, float]
    memory: tuple[float, float]
    parameters: tuple[float, float]
    macs: tuple[float, float]
    measured: str

    @property
    def key(self) -> str:
        """What tells the row from others."""
        return f"{self.model}, {self.size}, {self.mode}, beside {self.beside}"

    def is_worse_than(self, recorded: "Row | None") -> bool:
        """Whether time or memory is more than a tenth worse; never without a recorded row."""
        if recorded is None:
            return False
        return self.time_ratio > ALLOWED * recorded.time_ratio or ratio(self.memory) > ALLOWED * ratio(
            recorded.memory
        )

    def beside_recorded(self, recorded: "Row") -> str:
        """A sentence with the ratios now and as recorded."""
        times = f"time ratio {self.time_ratio:.2f}, recorded {recorded.time_ratio:.2f}"
        memory = f"memory ratio {ratio(self.memory):.2f}, recorded {ratio(recorded.memory):.2f}"
        return f"{self.key}: {times}; {memory}"

    def table_line(self) -> str:
        lowest, highest = self.time_range
        cells = [
            *(self.model, self.size, self.beside, self.mode),
            f"**{self.time_ratio:.2f}** ({lowest:.2f} to {highest:.2f})",
            *(f"{ratio(pair):.2f}" for pair in (self.macs, self.memory)),
            f"{self.seconds[0]:.3g} / {self.seconds[1]:.3g} s",
            pair_of(self.memory, 2**20, "MiB"),
            pair_of(self.macs, 1e9, "G"),
            pair_of(self.parameters, 1e6, "M"),
        ]
        return f"| {' | '.join(cells)} |"


def ratio(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1]


def pair_of(pair: tuple[float, float], unit: float, name: str) -> str:
    """Such as "60 / 59.9 M"."""
    ours, theirs = (
        f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}" for value in pair
    )
    return f"{ours} / {theirs} {name}"


def read_rows(file: Path) -> dict[str, Row]:
    """Recorded rows by key; none if there is no file."""
    if not file.exists():
        return {}
    rows = [
        Row(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
        for fields in json.loads(file.read_text(encoding="utf-8"))
    ]
    return {row.key: row for row in rows}


def with_rows(recorded: dict[str, Row], rows: Iterable[Row]) -> list[Row]:
    """The recorded rows, with new ones in their places or at the end."""
    return list({**recorded, **{row.key: row for row in rows}}.values())


def write_rows(file: Path, rows: list[Row]) -> None:
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def families_page(rows: list[Row]) -> str:
    """The Markdown page of all rows."""
    machines = "\n".join(f"- {name}" for name in dict.fromkeys(row.measured for row in rows))
    return PAGE.format(machines=machines, lines="\n".join(row.table_line() for row in rows))


__all__ = ["Row", "families_page", "read_rows", "with_rows", "write_rows"]
