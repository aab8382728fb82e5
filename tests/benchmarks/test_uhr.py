"""The measurement of context beside a crop: its crops, and that the command runs, goes on and prints tables."""

import pytest
import torch

from contextseg.benchmarks.uhr import main
from contextseg.benchmarks.uhr_crops import CROP, IGNORE_INDEX, Picture, flag_crops
from contextseg.processing.data.scenes import AMBIGUOUS, FLAGS


def test_the_context_has_the_center_of_its_crop():
    pixels = torch.arange(200 * 300, dtype=torch.float32).reshape(1, 200, 300).expand(3, -1, -1)
    picture = Picture((pixels % 251).byte(), torch.ones(200, 300, dtype=torch.uint8))
    pair = picture.pair(60, 100, 2)
    inner = slice(CROP // 4, CROP // 4 + CROP // 2)
    means = torch.nn.functional.avg_pool2d(pair.local, 2)
    torch.testing.assert_close(pair.context[:, inner, inner], means)
    assert picture.pair(0, 0, 4).context_labels[0, 0] == IGNORE_INDEX  # outside of the picture


@pytest.mark.slow
def test_white_crops_have_their_flag_in_the_context_only():
    for crop in flag_crops(0, 6):
        found = [picture.pair(*crop.corner, 4) for picture in crop.pictures]
        for pair in found:
            assert torch.isin(pair.labels, torch.tensor(AMBIGUOUS)).any()
            assert not torch.isin(pair.labels, torch.tensor(FLAGS)).any()
            assert torch.isin(pair.context_labels, torch.tensor(FLAGS)).any()
        assert torch.equal(found[0].local, found[1].local)
        assert not torch.equal(found[0].context, found[1].context)


@pytest.mark.slow
def test_a_run_is_scored_once_and_printed(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    command = [
        "flags",
        "--results",
        str(results),
        "--seeds",
        "0",
        "--steps",
        "2",
        "--crops",
        "8",
        "--scored",
        "4",
    ]
    command += ["--networks", "local,late,caswit2"]
    assert main(command) == main(command) == 0
    assert len(results.read_text().splitlines()) == 3
    assert main(["tables", "--results", str(results)]) == 0
    assert "| ViT, late fusion | " in capsys.readouterr().out
