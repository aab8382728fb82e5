import pytest
import torch
from cases import each

from contextseg.modeling.positions import (
    GlobalPositionSinCos,
    GlobalPositionTable,
    RelativePositionBias,
    sincos_places,
)
from contextseg.modeling.windows import plan_windows


@each("window", [(3,), (2, 3), (2, 3, 2)])
def test_each_offset_between_places_has_its_own_row(window):
    bias = RelativePositionBias(window, 2)
    rows_of_table = bias.table.shape[0]
    bias.table.data = torch.arange(2.0 * rows_of_table).reshape(2, rows_of_table).T
    first, second = bias()
    assert torch.equal(second, first + rows_of_table)
    places = torch.cartesian_prod(*(torch.arange(size) for size in window)).reshape(-1, len(window))
    offsets = (places[:, None] - places[None]).reshape(-1, len(window)).tolist()
    rows = {}
    for offset, row in zip(offsets, first.flatten().tolist(), strict=True):
        assert rows.setdefault(tuple(offset), row) == row
    assert sorted(rows.values()) == list(range(rows_of_table))


@each(("rows", "tokens"), [(10, 3), (10, 4), (11, 3), (11, 4), (12, 12)])
def test_the_table_gives_its_center_rows_as_the_authors_count_them(rows, tokens):
    table = GlobalPositionTable(rows, tokens, dim=1)
    table.table.data = torch.arange(rows).float()[:, None]
    first = rows // 2 - tokens // 2
    assert table(plan_windows((4, 4), (4, 4)))[:, 0].tolist() == list(range(first, first + tokens))


def test_a_table_that_is_too_small_says_what_to_do():
    with pytest.raises(
        ValueError, match="8x8 needs 8 global positions, and the table has 7 rows.*'none' or 'sincos'"
    ):
        GlobalPositionTable(7, 2, dim=4)(plan_windows((8, 8), (4, 4)))


@each("dim", [8, 10, 7])
def test_every_window_has_another_place(dim):
    places = sincos_places((5, 6), dim, torch.device("cpu"))
    assert places.shape == (30, dim)
    distances = torch.cdist(places, places) + 10 * torch.eye(30)
    assert distances.min() > 0.05


def test_places_do_not_depend_on_the_size_of_the_image():
    small, large = (
        sincos_places(counts, 16, torch.device("cpu")).unflatten(0, counts) for counts in [(3, 4), (9, 8)]
    )
    torch.testing.assert_close(large[:3, :4], small)


def test_tokens_of_one_window_share_its_place():
    position = GlobalPositionSinCos(num_tokens=2, dim=8)
    position.token_code.data.normal_()
    codes = position(plan_windows((8, 8), (4, 4))).unflatten(0, (4, 2))
    torch.testing.assert_close(
        codes - position.token_code, codes[:, :1] - position.token_code[:1] + torch.zeros(4, 2, 8)
    )


def test_wavelengths_go_from_two_pi_to_a_thousand_times_that():
    places = sincos_places((3,), 8, torch.device("cpu"))
    angles = torch.arange(3.0)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(places, torch.cat([angles.sin(), angles.cos()], dim=1))
