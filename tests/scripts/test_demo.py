"""contextseg-demo: its folder, what its numbers mean, its report, and (slow) the whole of it in two steps of training."""

import numpy as np
import pytest
from PIL import Image

from contextseg import GlamSwinConfig, GlamSwinForSemanticSegmentation, SegmentationImageProcessor
from contextseg.benchmarks.demo_report import report
from contextseg.benchmarks.demo_steps import MARKER, SPLITS, DemoArguments, fresh_folder, series
from contextseg.benchmarks.demonstration import (
    SceneComparison,
    StageAttention,
    ask,
    attention_of_stages,
    best_stage,
    image,
    segment_without_contextseg,
)
from contextseg.processing.data.scenes import AMBIGUOUS, CLASSES
from contextseg.scripts.demo import main
from contextseg.training.command_line import CommandError

LITTLE = [*("--steps", "2"), *("--scenes", "8"), *("--size", "64"), *("--distance", "20")]
SCORES = {
    "mean_iou": 0.5,
    "mean_accuracy": 0.5,
    "mean_precision": 0.5,
    "mean_dice": 0.5,
    "pixel_accuracy": 0.5,
    "per_class": [
        {"name": name, "iou": 0.25, "accuracy": 0.5, "precision": 0.5, "dice": 0.4, "support": 9}
        for name in CLASSES
    ],
}


@pytest.fixture
def case():
    """One scene and its twin without a model: tests set its predictions."""
    return ask(None, None, seed=0, count=1, size=64, distance=20)[0]


def test_a_folder_with_other_files_is_never_cleared(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="Choose another --output"):
        fresh_folder(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_demonstration_is_replaced(tmp_path):
    (fresh_folder(tmp_path / "demo") / "old.png").touch()
    assert [path.name for path in fresh_folder(tmp_path / "demo").iterdir()] == [MARKER]


def test_no_two_splits_of_any_seeds_share_their_scenes():
    used = [series(DemoArguments(seed=seed), split) for seed in range(5) for split in SPLITS]
    assert len(set(used)) == len(used)


def test_the_two_compared_scenes_differ_by_the_flag(case):
    assert case.scene.flag == case.twin.flag
    assert case.scene.frozen != case.twin.frozen


def test_who_sees_the_flag_is_right_under_both(case):
    case.predictions = (case.scene.mask, case.twin.mask)
    assert case.right == 1


def test_who_cannot_see_the_flag_is_right_under_both_nowhere(case):
    guess = np.where(np.random.default_rng(0).random(case.scene.mask.shape) < 0.5, *AMBIGUOUS)
    case.predictions = (guess, guess)
    assert case.right == 0


def test_the_explained_pixel_is_white(case):
    x, y = case.position
    assert case.scene.mask[y, x] in AMBIGUOUS


def test_even_attention_is_one_on_the_flag_and_attention_to_it_is_more(case):
    case.attention = {0: np.full((64, 64), 1 / 64**2)}.get
    assert case.attention_on_flag(0) == pytest.approx(1)
    only_flag = np.zeros((64, 64))
    only_flag[case.scene.flag] = 1
    case.attention = {0: only_flag}.get
    assert case.attention_on_flag(0) > 5


def nano(**options):
    return GlamSwinForSemanticSegmentation(
        GlamSwinConfig.preset("nano", num_labels=len(CLASSES), **options)
    ).eval()


def test_attention_is_measured_in_every_stage_that_has_it_for_both_colors():
    model = nano(depths=(2, 1, 2), num_heads=(1, 2, 4))
    comparisons = ask(model, SegmentationImageProcessor(), seed=0, count=6, size=64, distance=20)
    rows = attention_of_stages(comparisons)
    assert [(row.stage, row.window) for row in rows] == [(0, 16), (2, 64)]
    assert all(row.red > 0 < row.blue for row in rows)
    assert (
        attention_of_stages(
            [SceneComparison(nano(num_global_tokens=0), None, comparisons[0].scene, comparisons[0].twin)]
        )
        == []
    )


def test_the_stage_that_is_shown_has_several_windows():
    rows = [StageAttention(0, 16, 1, 1), StageAttention(1, 32, 3, 1), StageAttention(2, 64, 9, 9)]
    assert best_stage(rows, size=64) == rows[1]
    assert best_stage(rows, size=65) == rows[2]
    assert best_stage([], size=64) is None


def test_plain_swin_has_no_column_of_attention(case):
    case.attention = {0: np.eye(64)}.get
    case.predictions = (case.scene.mask, case.twin.mask)
    assert image([case], stage=0).width > image([case], stage=None).width


def facts(attention, shown):
    return {
        "scores": SCORES,
        "right": 0.75,
        "attention": attention,
        "shown": shown,
        "pipeline_masks": 8,
        "minutes": 3.21,
    }


def test_the_report_states_scores_attention_and_what_it_does_not_show():
    row = StageAttention(stage=2, window=64, red=7.25, blue=1.5)
    text = report(vars(DemoArguments()), facts([row], row))
    assert "| 3 | 64 px | 7.2 | 1.5 |" in text
    assert "snow field 25.00 %" in text
    assert "75.00 % of the white pixels" in text
    assert "does not show that this takes global tokens" in text
    assert "`contextseg-app demo/run` shows this" in text


def test_the_report_on_plain_swin_says_that_it_has_no_global_attention():
    assert "Plain Swin has no global tokens" in report(vars(DemoArguments(tokens=0)), facts([], None))


def test_an_impossible_distance_is_answered_with_the_possible_ones(tmp_path):
    with pytest.raises(SystemExit, match="Pass 0 <= distance <= 44.8"):
        main([*LITTLE, "--distance", "50", "--output", str(tmp_path / "demo")])


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [4, 0])
@pytest.mark.processes
def test_two_processes_the_whole_demonstration(tmp_path, tokens, capsys):
    folder = tmp_path / "demo"
    assert main([*LITTLE, "--tokens", str(tokens), "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "8 masks, identical" in printed
    assert f"in the browser: contextseg-app {folder}/run\n" in printed
    assert "contextseg-demo --steps 2 --scenes 8 --size 64" in (folder / "REPORT.md").read_text()
    for name in ("scenes.png", "loss.png"):
        with Image.open(folder / name) as image:
            assert image.width > 600
    assert (folder / "model" / "modeling_glam_swin.py").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_a_folder_that_does_not_open_without_contextseg_is_reported(tmp_path):
    with pytest.raises(CommandError, match="does not work in a Python process without contextseg"):
        segment_without_contextseg(tmp_path, tmp_path, tmp_path)
