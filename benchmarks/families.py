"""Every family beside another library's network: time, memory, parameters and multiply-adds, and whether they got worse.

    python -m contextseg.benchmarks.families               # compares with the recorded ratios; `make bench`
    python -m contextseg.benchmarks.families --record      # records them, and writes benchmarks/families.md

The rows are those of `family_models.FAMILIES`. The exit code is 1 if a ratio is more than a tenth worse than the recorded
one, each time that it is measured. Slow imports come after the command line is parsed.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from .recorded_ratios import Row, families_page, read_rows, with_rows, write_rows

if TYPE_CHECKING:
    from .family_contests import Contest

PROGRAM = "python -m contextseg.benchmarks.families"
DESCRIPTION = """Measure a training step and inference of every family beside another library's network, and compare the
ratios with the recorded ones. Exits with 1 if one is more than a tenth worse."""
TRIES = 3  # measurements of a row before it counts as worse


@dataclass
class FamiliesArguments(CommandOptions):
    only: str = option(
        "", "measure only models whose name contains one of these, e.g. nano,cswin", metavar="TEXT,TEXT"
    )
    repeats: int = option(3, "rounds of a row; rows that take little time have up to three times as many")
    record: bool = option(
        False, "replace the recorded ratios of the rows that are measured, and write the page"
    )
    ratios: str = option("benchmarks/families.json", "file of recorded ratios", metavar="FILE")
    page: str = option("benchmarks/families.md", "page that --record writes", metavar="FILE")
    jobs: int = option(2, "processes of one thread each, which divide the models among them")
    quick: bool = option(
        False, "nano models and very small images, one round each, to see whether everything still runs"
    )


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(FamiliesArguments, PROGRAM, DESCRIPTION).arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        recorded, rows = read_rows(Path(arguments.ratios)), []
        for found in measured_rows(arguments, {} if arguments.record else recorded):
            print(*(row.table_line() for row in found), sep="\n", flush=True)
            rows += found
            if arguments.record:
                record(arguments, with_rows(recorded, rows))
    if arguments.record:
        print(f"wrote {arguments.ratios} and {arguments.page}")
        return 0
    worse = [row for row in rows if row.is_worse_than(recorded.get(row.key))]
    new = sum(row.key not in recorded for row in rows)
    print(f"{len(rows)} rows, {new} of them without a recorded ratio; {len(worse)} more than a tenth worse.")
    print(*(f"worse: {row.beside_recorded(recorded[row.key])}" for row in worse), sep="\n")
    return 1 if worse else 0


def measured_rows(arguments: FamiliesArguments, recorded: dict[str, Row]) -> Iterator[list[Row]]:
    """Measures the models and yields the rows of each; rows worse than the recorded ones are measured several times."""
    names = chosen_names(arguments)
    measure = partial(rows_of_model, arguments, recorded)
    if arguments.jobs == 1 or len(names) == 1:
        yield from map(measure, names)
        return
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as processes:
        yield from processes.map(measure, names)


def rows_of_model(arguments: FamiliesArguments, recorded: dict[str, Row], name: str) -> list[Row]:
    """All sizes and modes of a model, on one thread."""
    import torch

    from .family_contests import contests
    from .family_models import FAMILIES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 1 if arguments.quick else arguments.repeats
    found = contests(name, FAMILIES[name], arguments.quick)
    return [row for contest in found for row in best_of_tries(contest, rounds, recorded)]


def best_of_tries(contest: "Contest", rounds: int, recorded: dict[str, Row]) -> list[Row]:
    """The rows of a contest, measured again while one of them is worse than its recorded ratio."""
    found = contest.rows(rounds)
    for _ in range(TRIES - 1):
        if not any(row.is_worse_than(recorded.get(row.key)) for row in found):
            break
        again = contest.rows(rounds)
        found = [min(pair, key=lambda row: row.time_ratio) for pair in zip(found, again, strict=True)]
    return found


def chosen_names(arguments: FamiliesArguments) -> list[str]:
    """The models to measure; says which libraries are missing. Raises ValueError if --only leaves none."""
    from .family_models import FAMILIES, LIBRARIES, is_installed

    texts = (arguments.only or ("nano" if arguments.quick else "")).split(",")
    names = [name for name in FAMILIES if any(text in name for text in texts)]
    if not names:
        raise ValueError(f"--only is '{arguments.only}', but the models are {', '.join(FAMILIES)}.")
    for library, packages in LIBRARIES.items():
        if not is_installed(library):
            command = "pip install " + " ".join(packages).replace("_", "-")
            print(f"Rows beside {library} are left out: it is not installed ({command}).")
    return names


def record(arguments: FamiliesArguments, rows: list[Row]) -> None:
    write_rows(Path(arguments.ratios), rows)
    Path(arguments.page).write_text(families_page(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
