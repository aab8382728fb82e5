"""The task with a distant cue in volumes."""

import numpy as np
import pytest

from contextseg.benchmarks.volume_flags import FLAG_SIDE, new_model, new_scene, reach


def test_repainting_the_flag_changes_the_flag_and_the_class_of_white_only():
    scene = new_scene(0, 3)
    (dark, low), (bright, high) = scene.under(0), scene.under(1)
    changed = np.zeros(scene.white.shape, bool)
    changed[scene.flag] = True
    assert changed.sum() == FLAG_SIDE**3
    assert np.array_equal(dark[0] != bright[0], changed)
    assert np.array_equal(low != high, changed | scene.white)
    assert not (changed & scene.white).any()
    assert (scene.distance[scene.flag] == 0).all()


@pytest.mark.slow
def test_a_token_sees_the_whole_volume_and_windows_alone_do_not():
    assert reach(new_model("none")) < 47  # from the last place that is tried to the opposite side
    assert reach(new_model("bare 1")) == 47
