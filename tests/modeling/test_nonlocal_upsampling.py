import torch
from cases import each
from torch.utils._python_dispatch import TorchDispatchMode

from contextseg import GlamSwinConfig
from contextseg.modeling.nonlocal_upsampling import (
    UPSAMPLINGS,
    CrossPositionBias,
    UpsamplingSizes,
    cross_position_index,
)


def upsample(kind, window=(4, 4), implementation="sdpa", **options):
    torch.manual_seed(0)
    config = GlamSwinConfig(attn_implementation=implementation)
    built = UPSAMPLINGS[kind](config, UpsamplingSizes(8, 4, 2, window, (2,) * len(window), 2.0, **options))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built.eval()


def inputs(grid, batch=1):
    """Features and a skip of twice the size, less one where the side is odd."""
    torch.manual_seed(1)
    coarse = [(side + 1) // 2 for side in grid]
    return torch.randn(batch, *coarse, 8), torch.randn(batch, *grid, 4)


@torch.no_grad()
def test_one_window_over_the_whole_grid_is_the_papers_attention():
    windowed, whole = upsample("nonlocal", window=(3, 5)), upsample("nonlocal_global")
    torch.nn.init.zeros_(windowed.attend.position_bias.table)
    weights = windowed.state_dict()
    del weights["attend.position_bias.table"]
    whole.load_state_dict(weights)
    features, skip = inputs((6, 10))
    torch.testing.assert_close(windowed(features, skip), whole(features, skip))


def reached(built, grid, cell):
    """(G...) true where a change of one coarse cell changes the attention's result."""
    features, skip = inputs(grid)
    changed = features.clone()
    changed[0, *cell] += 1
    with torch.no_grad():
        return (built.attend(skip, changed) - built.attend(skip, features)).abs().amax(dim=-1)[0] > 1e-6


def test_inside_windows_a_cell_reaches_the_fine_window_above_it():
    seen = reached(upsample("nonlocal"), (15, 24), (1, 5))
    assert seen[:8, 8:16].all()
    assert seen.sum() == 64


def test_globally_a_cell_reaches_everything():
    assert reached(upsample("nonlocal_global"), (15, 24), (1, 5)).all()


def test_the_clean_index_is_the_offset_from_the_coarse_place_that_a_fine_one_lies_in():
    index = cross_position_index((3, 5), (2, 2), "clean", torch.device("cpu"))
    for row, column, key_row, key_column in [(0, 0, 0, 0), (5, 9, 0, 0), (0, 1, 2, 4), (3, 6, 1, 3)]:
        expected = (row // 2 - key_row + 2) * 9 + (column // 2 - key_column + 4)
        assert index[row * 10 + column, key_row * 5 + key_column] == expected
    assert index.unique().tolist() == list(range(5 * 9))


@each("window", range(2, 9))
def test_the_official_index_is_the_clean_one_with_the_columns_of_keys_permuted(window):
    clean, official = (
        cross_position_index((window, window), (2, 2), bias, torch.device("cpu")).unflatten(
            1, (window, window)
        )
        for bias in ("clean", "official")
    )
    for column in range(window):
        assert torch.equal(official[:, :, column], clean[:, :, 2 * column % window])


def test_the_bias_is_the_tables_row():
    bias = CrossPositionBias(UpsamplingSizes(8, 4, 3, (2, 2), (2, 2), 2.0))
    torch.nn.init.normal_(bias.table)
    assert bias().shape == (3, 16, 4)
    torch.testing.assert_close(bias()[:, 0, 0], bias.table[4])  # no offset: the middle of 3 x 3


@each("kind", [*UPSAMPLINGS])
@each("grid", [(1, 1), (7, 12), (16, 9)])
def test_any_grid_is_reached(kind, grid):
    features, skip = inputs(grid, batch=2)
    assert upsample(kind)(features, skip).shape == skip.shape


def test_a_volume_of_depth_one_equals_the_image():
    flat, volume = upsample("nonlocal"), upsample("nonlocal", window=(1, 4, 4))
    attention = volume.attend.attention
    attention.load_state_dict(flat.attend.attention.state_dict())
    volume.attend.position_bias.table.data = flat.attend.position_bias.table.data
    features, skip = inputs((8, 8))
    expected = flat.attend(skip, features)
    deep = torch.stack([skip, skip], dim=1)  # a coarse slice covers two fine ones
    torch.testing.assert_close(volume.attend(deep, features[:, None])[:, 1], expected)


def test_padding_is_not_attended_to_globally():
    built, (features, skip) = upsample("nonlocal_global"), inputs((8, 8))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, 3:] = False
    expected = built.attend(skip, features[:, :3])
    torch.testing.assert_close(built.attend(skip, features, mask), expected)


@torch.no_grad()
def test_the_bilinear_shortcut_keeps_the_corners():
    built, features = upsample("nonlocal", shortcut="bilinear"), torch.randn(1, 4, 6, 8)
    finer, coarse = built.shortcut(features, (8, 12)), built.shortcut.projection(features)
    torch.testing.assert_close(finer[:, ::7, ::11], coarse[:, ::3, ::5])
    torch.testing.assert_close(built.shortcut(features, (7, 11)), finer[:, :7, :11])


class LargestTensor(TorchDispatchMode):
    """The most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in results if isinstance(results, tuple | list) else [results]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return results


@each(("implementation", "holds_matrix"), [("sdpa", False), ("eager", True)])
@torch.no_grad()
def test_global_attention_never_holds_its_matrix(implementation, holds_matrix):
    built, (features, skip) = upsample("nonlocal_global", implementation=implementation), inputs((64, 64))
    with LargestTensor() as largest:
        built(features, skip)
    matrix = 2 * 64 * 64 * 32 * 32  # heads, fine and coarse tokens
    assert (largest.elements >= matrix) == holds_matrix
    assert holds_matrix or largest.elements <= 64 * 64 * 16


@torch.no_grad()
def test_the_bilinear_shortcut_has_equal_steps_between_the_corners():
    built = upsample("nonlocal", shortcut="bilinear").shortcut
    ramp = torch.arange(4.0)[None, :, None, None] * torch.ones(1, 4, 4, 8)
    rows = built(ramp, (8, 8))[0, :, 0]
    torch.testing.assert_close(rows[1:] - rows[:-1], ((rows[-1] - rows[0]) / 7).expand(7, 4))


@torch.no_grad()
def test_a_step_adds_attention_to_normalized_features_and_an_mlp_to_the_shortcut():
    built, (features, skip) = upsample("nonlocal_global"), inputs((8, 8))
    normalized = torch.nn.functional.layer_norm(features, (8,), built.norm1.weight, built.norm1.bias)
    upsampled = built.shortcut(features, (8, 8)) + built.attend(skip, normalized)
    torch.testing.assert_close(built(features, skip), upsampled + built.mlp(built.norm2(upsampled)))
