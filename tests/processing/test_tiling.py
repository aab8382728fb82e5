from itertools import product

import pytest
import torch
from cases import each

from contextseg.processing.tiling import (
    Grid,
    RowReader,
    blended_rows,
    constant_weights,
    gaussian_weights,
    overlap_slices,
    window_starts,
)


def blended(values, window, steps, weights):
    """(K, G...) cut into windows and put together again, and the rows of each piece."""
    starts = [window_starts(n, w, step) for n, w, step in zip(values.shape[1:], window, steps, strict=True)]
    grid = Grid(tuple(values.shape[1:]), window, starts, (0,) * len(window), weights(window))

    def predict(places):
        for place in places:
            yield values[(slice(None), *(slice(p, p + w) for p, w in zip(place, window, strict=True)))]

    pieces = list(blended_rows(grid, predict))
    return torch.cat(pieces, dim=1), [piece.shape[1] for piece in pieces]


@each(("length", "window", "step"), list(product((1, 2, 7, 64, 65), (1, 3, 7, 64), (1, 3))))
def test_windows_cover_every_cell_and_none_reaches_over_the_end(length, window, step):
    window = min(window, length)
    starts = window_starts(length, window, min(step, window))
    covered = {cell for start in starts for cell in range(start, start + window)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))


def test_the_last_window_moves_back_to_the_end():
    assert window_starts(10, 4, 4) == [0, 4, 6]
    assert window_starts(12, 4, 4) == [0, 4, 8]
    assert window_starts(4, 4, 2) == [0]


@each("weights", [constant_weights, gaussian_weights])
@each(
    ("size", "window", "steps"),
    [
        ((13,), (5,), (2,)),
        ((9, 11), (4, 5), (3, 2)),
        ((7, 8, 9), (3, 8, 4), (2, 8, 3)),
        ((1, 1), (1, 1), (1, 1)),
    ],
)
def test_windows_of_a_map_blend_to_the_map_on_any_number_of_axes(size, window, steps, weights):
    values = torch.randn(3, *size)
    torch.testing.assert_close(blended(values, window, steps, weights)[0], values)


def test_rows_leave_as_soon_as_no_window_touches_them():
    _, rows = blended(torch.randn(2, 100, 6), (8, 6), (4, 6), constant_weights)
    assert rows == [4] * 23 + [8]


def test_overlapping_windows_count_by_their_weights():
    grid = Grid((3,), (2,), [window_starts(3, 2, 1)], (0,), torch.tensor([1.0, 3.0]))
    pieces = blended_rows(grid, lambda _: [torch.full((1, 2), next(values))])
    values = iter([10.0, 20.0])
    assert torch.cat(list(pieces), 1).tolist() == [[10.0, (3 * 10 + 20) / 4, 20.0]]


def test_the_bell_is_an_eighth_of_the_window_wide_symmetric_and_never_zero():
    weights = gaussian_weights((33, 17))
    assert weights[16, 8] == weights.max() == 1
    torch.testing.assert_close(weights, weights.flip(0, 1))
    torch.testing.assert_close(weights[16, 10].log(), torch.tensor(-0.5 * (2 / (17 / 8)) ** 2))
    assert weights.min() == pytest.approx(1e-3)


@each("lengths", [[10], [1] * 10, [4, 1, 5]])
@each("spans", [[(0, 3), (2, 5), (5, 10)], [(0, 1), (7, 9), (9, 10)], [(0, 10)]])
def test_rows_are_the_same_however_the_map_arrives(lengths, spans):
    rows = torch.randn(2, 10, 3)
    reader = RowReader(rows.split(lengths, dim=1))
    assert all(torch.equal(reader.read(*span), rows[:, slice(*span)]) for span in spans)


def test_the_bell_is_one_at_the_center_between_two_cells_too():
    assert gaussian_weights((4, 6)).max() == 1


def test_a_part_overlaps_the_map_where_both_have_cells():
    for start, length, size in product(range(-6, 7), range(1, 8), range(1, 5)):
        in_map, in_part = overlap_slices(start, length, size)
        assert list(range(size))[in_map] == [
            cell for cell in range(start, start + length) if 0 <= cell < size
        ]
        assert list(range(start, start + length))[in_part] == list(range(size))[in_map]
