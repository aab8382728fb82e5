import math

import torch
from cases import each

from contextseg.modeling.windows import plan_windows, shift_masks, window_partition, window_reverse

GRIDS = [((8, 12), (4, 4)), ((5, 9), (4, 3)), ((1, 1), (7, 7)), ((3, 6, 5), (2, 4, 2)), ((11,), (4,))]


@each("shifted", [False, True])
@each(("grid", "window"), GRIDS)
def test_joining_what_was_cut_returns_the_grid(grid, window, shifted):
    features = torch.randn(2, *grid, 3)
    windows = plan_windows(grid, window, shifted)
    assert torch.equal(window_reverse(window_partition(features, windows), windows), features)


def test_windows_and_their_tokens_are_in_row_major_order():
    features = torch.arange(4 * 6).reshape(1, 4, 6, 1).float()
    tokens = window_partition(features, plan_windows((4, 6), (2, 3)))
    assert tokens.shape == (1, 4, 6, 1)
    assert tokens[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11]


def test_padding_is_zero_and_after_the_end():
    tokens = window_partition(torch.ones(1, 3, 3, 1), plan_windows((3, 3), (2, 2)))
    assert tokens[0, :, :, 0].sum(dim=1).tolist() == [4, 2, 2, 1]


def test_the_shift_is_half_a_window():
    assert plan_windows((9, 9), (7, 4), shifted=True).shift == (3, 2)
    assert plan_windows((9, 9), (7, 4)).shift == (0, 0)


@each("grid", [(8, 12), (12, 8), (8, 8)])
def test_the_mask_parts_exactly_what_the_cyclic_shift_brought_together(grid):
    windows = plan_windows(grid, (4, 4), shifted=True)
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1)[None]
    tokens = window_partition(places, windows)[0]  # where each token comes from
    steps = (tokens[:, :, None] - tokens[:, None]).abs()
    together = (steps < 4).all(dim=-1)  # no further apart than a window is wide: true neighbors
    masks = shift_masks(windows, torch.device("cpu"), torch.float32)
    assert torch.equal(masks.of_windows == 0, together)


def test_regular_windows_need_no_mask():
    assert shift_masks(plan_windows((8, 8), (4, 4)), torch.device("cpu"), torch.float32) is None


def test_a_single_shifted_window_is_parted_at_the_shift_as_in_swin():
    masks = shift_masks(plan_windows((4,), (4,), shifted=True), torch.device("cpu"), torch.float32)
    assert (masks.of_windows[0, 0] == 0).tolist() == [True, True, False, False]


@each(("grid", "window"), GRIDS)
def test_windows_that_are_last_along_the_same_axes_share_a_mask(grid, window):
    windows = plan_windows(grid, window, shifted=True)
    masks = shift_masks(windows, torch.device("cpu"), torch.float32)
    assert len(masks.of_kinds) == 2 ** len(grid)
    assert not masks.of_kinds[0].any()
    assert len(masks.of_windows) == math.prod(windows.counts)
