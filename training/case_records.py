"""Scores of the cases that are done, kept in files while an evaluation of volumes runs, so that a stopped one goes on."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ..processing.volumes.volume_scores import CaseScores
from .records import write_whole


class CaseRecords:
    """One line for each case, in one file for each process.

    Args:
        folder: The folder of the files, made when there is something to write; None to keep nothing.
        rank: The index of this process.

    Attributes:
        done: The scores by the index of the case.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.folder, self.name = folder, f"cases-{rank}.jsonl"
        self.done: dict[int, CaseScores] = {}

    def restore(self) -> list[int]:
        """Takes what processes of a stopped evaluation have written; the first process calls this before all others.

        Returns:
            The indices of the cases that are scored.
        """
        paths = sorted(self.folder.glob("cases-*.jsonl")) if self.folder is not None else []
        for path in paths:
            self.done |= read_cases(path)
        if paths:
            lines = [line_of(index, case) for index, case in self.done.items()]
            write_whole(self.folder / self.name, "".join(lines))
        for path in paths:
            if path.name != self.name:
                path.unlink()
        return list(self.done)

    def note(self, index: int, case: CaseScores) -> None:
        """Keeps that a case is scored. Raises OSError if the file cannot be written."""
        self.done[index] = case
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / self.name).open("a", encoding="utf-8") as file:
                file.write(line_of(index, case))

    def remove(self) -> None:
        """Removes all files, when the evaluation is complete; the first process calls this after all others."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def line_of(index: int, case: CaseScores) -> str:
    return json.dumps([index, asdict(case)]) + "\n"


def read_cases(path: Path) -> dict[int, CaseScores]:
    """The scores in a file, without the last line if a killed process left it incomplete."""
    cases = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            index, scores = json.loads(line)
        except ValueError:
            continue
        cases[index] = CaseScores(**scores)
    return cases
