"""A file of results, to which a benchmark adds a line for each run, so that it can go on after a stop."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_results(file: Path) -> list[dict]:
    """The results in a file, one JSON object in each line; none if there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_missing(
    file: Path,
    names: Sequence[str],
    seeds: str,
    run: Callable[[str, int], dict],
    settings: Mapping[str, Any] = {},
) -> Iterator[dict]:
    """Runs what the file of results lacks, adds each result to it and yields it.

    Args:
        file: The file of results.
        names: What to run; each becomes the `network` of a result.
        seeds: Seeds, with commas between them.
        run: Name and seed -> scores.
        settings: Further fields of a result. Results with others do not count as run.
    """
    known = [one for one in read_results(file) if settings.items() <= one.items()]
    done = {(one["network"], one["seed"]) for one in known}
    for seed in map(int, seeds.split(",")):
        for name in names:
            if (name, seed) not in done:
                result = {"network": name, "seed": seed, **run(name, seed), **settings}
                with file.open("a") as lines:
                    lines.write(json.dumps(result) + "\n")
                yield result
