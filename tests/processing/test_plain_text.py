import csv
import re

import pytest
import torch
from cases import each

from contextseg.hub.card_sections import sections
from contextseg.hub.model_card import END
from contextseg.processing.boundary_metrics import BoundaryF, BoundaryIoU, add_boundaries
from contextseg.processing.data.pairing import listed
from contextseg.processing.data.report import CheckReport
from contextseg.processing.metrics import ConfusionMatrix, scores_table
from contextseg.processing.plain_text import csv_text, markdown_text, one_line
from contextseg.training.command_line import short_errors
from contextseg.training.evaluation_files import report

NASTY = [
    "a|b",
    "two\nlines\r\u2028three",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "=HYPERLINK(1)",
    "\x1b[31mred\x9b0m",
    "$\\frac{$ _ ^",
    END,
    "\u202egnp.exe",
    "| --- |\n| --- |",
    "a\\|b",
    "https://example.org &lt; www.example.org",
]


def scores():
    confusion = ConfusionMatrix(len(NASTY))
    confusion.update(torch.arange(len(NASTY))[None], torch.arange(len(NASTY))[None])
    return confusion, confusion.compute(NASTY)


def columns(table):
    return {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}


def test_a_table_keeps_its_rows_and_columns_for_any_name():
    table = scores_table(scores()[1])
    assert len(table.splitlines()) == len(NASTY) + 3
    assert columns(table) == {7}


def test_a_card_keeps_its_table_and_its_end_for_any_name():
    config = {"architectures": ["GlamSwinForSemanticSegmentation"], "model_type": "glam_swin"}
    config |= {"id2label": dict(enumerate(NASTY))}
    run = {"arguments": {"classes": NASTY, "train": END}, "command": ["contextseg-train", "a\n```\n# b"]}
    card = "\n".join(sections(config, {}, scores()[1], run, ".", None))
    labels = card.partition("## Labels\n")[2].partition("## ")[0].strip()
    assert columns(labels) == {5}
    assert END not in card
    assert not {"<script>", "[click](", "\x1b", "\u202e"} & {part for part in NASTY if part in card}

    assert card.count("\n```") == 8  # use, command, settings, citation


def test_evaluation_files_hold_any_name_in_one_cell(tmp_path, capsys):
    confusion, table = scores()
    add_boundaries(table, *(kind(len(NASTY)).compute() for kind in (BoundaryIoU, BoundaryF)))
    report(table, {"model": NASTY[2], "boundaries": "within 2 pixels"}, confusion, tmp_path)
    with (tmp_path / "evaluation.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [len(row) for row in rows] == [len(rows[0])] * (len(NASTY) + 1)
    assert not any(row[0].startswith(("=", "+", "-", "@")) for row in rows)
    assert (tmp_path / "confusion.csv").read_text().count("\n") == len(NASTY) + 1
    assert "<script>" not in (tmp_path / "evaluation.md").read_text()
    assert "\x1b" not in capsys.readouterr().out


@each(
    ("text", "line"),
    [("a\n\tb ", "a b"), ("\x1b[1mx", "[1mx"), ("شیرهای\u200cآب", "شیرهای\u200cآب"), ("道路", "道路")],
)
def test_a_line_has_no_control_characters_and_keeps_scripts(text, line):
    assert one_line(text) == line


@each("name", ["traffic_light", "Straße 12 %", "sedan (4 doors)", "b&b", "a-b", "C#"])
def test_ordinary_names_stay_as_they_are(name):
    assert (markdown_text(name), csv_text(name)) == (name, name)


def test_messages_and_reports_show_no_control_characters():
    assert "\x1b" not in listed(NASTY) + CheckReport("data", NASTY, 0).text()
    with pytest.raises(SystemExit, match=r"^program: line\n red$"), short_errors("program"):
        raise ValueError("line\n\x1bred")
