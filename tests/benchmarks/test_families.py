"""The table of all families: what is recorded, what counts as worse, and that one row of each kind runs."""

import dataclasses
from pathlib import Path

import pytest

from contextseg.benchmarks import families
from contextseg.benchmarks.recorded_ratios import Row, families_page, read_rows, with_rows, write_rows

ROW = Row(
    model="glam_swin tiny",
    beside="transformers Swin + UPerNet",
    size="512x512",
    mode="inference",
    time_ratio=0.7,
    time_range=(0.69, 0.71),
    seconds=(1.0, 1.4),
    memory=(200.0 * 2**20, 400.0 * 2**20),
    parameters=(65e6, 60e6),
    macs=(240e9, 238e9),
    measured="2026-11-30, a machine",
)


class Contest:
    """Gives rows with these time ratios, one after the other."""

    def __init__(self, *ratios):
        self.ratios = list(ratios)

    def rows(self, _rounds):
        return [dataclasses.replace(ROW, time_ratio=self.ratios.pop(0))]


def test_a_ratio_is_worse_when_more_than_a_tenth_above_the_recorded_one():
    assert dataclasses.replace(ROW, time_ratio=0.78).is_worse_than(ROW)
    assert not dataclasses.replace(ROW, time_ratio=0.76).is_worse_than(ROW)
    assert not dataclasses.replace(ROW, time_ratio=9.0).is_worse_than(None)
    assert dataclasses.replace(ROW, memory=(230.0, 400.0)).is_worse_than(ROW)
    assert not dataclasses.replace(ROW, memory=(430.0, 800.0)).is_worse_than(ROW)


def test_a_worse_row_is_measured_again_before_it_counts():
    contest = Contest(0.9, 0.72, 0.9)
    assert families.best_of_tries(contest, 3, {ROW.key: ROW})[0].time_ratio == 0.72
    assert contest.ratios == [0.9]
    assert families.best_of_tries(Contest(0.9, 0.85, 0.88), 3, {ROW.key: ROW})[0].time_ratio == 0.85
    assert families.best_of_tries(Contest(0.9), 3, {})[0].time_ratio == 0.9


def test_recorded_rows_are_read_as_they_were_written(tmp_path):
    other = dataclasses.replace(ROW, mode="training step")
    write_rows(tmp_path / "ratios.json", [ROW, other])
    recorded = read_rows(tmp_path / "ratios.json")
    assert list(recorded.values()) == [ROW, other]
    assert read_rows(tmp_path / "nothing.json") == {}
    faster = dataclasses.replace(ROW, time_ratio=0.5)
    assert with_rows(recorded, [faster]) == [faster, other]


def test_the_page_has_ratios_with_their_limit_and_every_machine_once():
    page = families_page([ROW, dataclasses.replace(ROW, mode="training step")])
    assert (
        "| **0.70** (0.69 to 0.71) | 1.01 | 0.50 | 1 / 1.4 s | 200 / 400 MiB | 240 / 238 G | 65 / 60 M |"
        in page
    )
    assert page.count("a machine") == 1


def test_every_page_of_measurements_is_listed():
    folder = Path(families.__file__).parent
    listed = (folder / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in folder.glob("*.md")} - {"README.md"}
    assert len(pages) > 10
    assert [page for page in sorted(pages) if f"]({page})" not in listed] == []


def regression(monkeypatch, tmp_path, now):
    write_rows(tmp_path / "ratios.json", [ROW])
    monkeypatch.setattr(families, "measured_rows", lambda *_: [[dataclasses.replace(ROW, time_ratio=now)]])
    return families.main(["--ratios", str(tmp_path / "ratios.json")])


def test_the_exit_code_tells_whether_a_row_is_worse(monkeypatch, tmp_path, capsys):
    assert regression(monkeypatch, tmp_path, now=0.76) == 0
    assert "worse:" not in capsys.readouterr().out
    assert regression(monkeypatch, tmp_path, now=0.78) == 1
    assert (
        "worse: glam_swin tiny, 512x512, inference, beside transformers Swin + UPerNet: time ratio 0.78, recorded 0.70"
        in (capsys.readouterr().out)
    )


def test_only_without_a_model_names_them_all(tmp_path):
    with pytest.raises(SystemExit, match="--only is 'resnet', but the models are glam_swin nano, "):
        families.main(["--only", "resnet", "--ratios", str(tmp_path / "ratios.json")])


@pytest.mark.slow
def test_a_quick_run_records_every_family_and_then_finds_its_ratios(tmp_path, capsys):
    files = ["--ratios", str(tmp_path / "ratios.json"), "--page", str(tmp_path / "families.md")]
    assert families.main(["--quick", "--record", "--jobs", "1", *files]) == 0
    rows = read_rows(tmp_path / "ratios.json").values()
    names = {row.model.split()[0] for row in rows}
    assert names >= {"glam_swin", "cswin", "maformer", "segdeformer", "caswit", "relay"}
    assert all(min(*row.seconds, *row.memory, *row.parameters, *row.macs) > 0 for row in rows)
    assert all(row.table_line() in (tmp_path / "families.md").read_text() for row in rows)
    capsys.readouterr()
    families.main(["--quick", "--only", "segdeformer nano", *files])
    assert "2 rows, 0 of them without a recorded ratio" in capsys.readouterr().out
