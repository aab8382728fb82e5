import pytest
import torch
from cases import each

from contextseg import GlamSwinConfig
from contextseg.modeling.global_tokens import tokens_with_image
from contextseg.modeling.patches import PatchEmbed, PatchMerge
from contextseg.modeling.skip_attention import SkipAttentionBlock
from contextseg.modeling.swin_stages import StageSizes, SwinStage
from contextseg.modeling.windows import plan_windows, window_partition


def stage(window=(4, 4), depth=2, num_global_tokens=2, **sizes):
    torch.manual_seed(0)
    built = SwinStage(
        GlamSwinConfig(attn_implementation="sdpa"),
        StageSizes(8, depth, 2, window, 2.0, (0.0,) * depth, num_global_tokens=num_global_tokens, **sizes),
    )
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


class Joined(torch.nn.Module):
    """A skip attention block whose two inputs are the same features."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, features, present=None):
        return self.block(features, features, present)


def skip_block(**sizes):
    torch.manual_seed(0)
    sizes = StageSizes(8, 1, 2, (4, 4), 2.0, (0.0,), **sizes)
    block = SkipAttentionBlock(GlamSwinConfig(attn_implementation="sdpa"), sizes, 0.0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Joined(block).eval()


def influence(built, features, cell):
    """(B, G...) true where a change of one cell's features changes the output."""
    changed = features.clone()
    changed[(slice(None), *cell)] = torch.randn(features.shape[-1])
    with torch.no_grad():
        return (built(changed) - built(features)).abs().amax(dim=-1) > 1e-6


def test_without_global_tokens_one_block_sees_its_window_only():
    seen = influence(stage(depth=1, num_global_tokens=0), torch.randn(1, 8, 12, 8), (1, 1))
    assert seen[0, :4, :4].all()
    assert not seen[0, 4:].any()
    assert not seen[0, :, 4:].any()


def test_with_global_tokens_the_second_block_sees_the_whole_grid():
    assert influence(stage(), torch.randn(1, 8, 12, 8), (1, 1)).all()


def test_without_global_attention_tokens_stay_in_their_window():
    assert not influence(stage(use_global_attention=False), torch.randn(1, 8, 12, 8), (1, 1)).all()


def test_a_volume_of_depth_one_equals_the_image():
    flat, volume = stage(window=(4, 4)), stage(window=(1, 4, 4))
    volume.load_state_dict(flat.state_dict())
    features = torch.randn(2, 7, 9, 8)
    torch.testing.assert_close(volume(features[:, None])[:, 0], flat(features))


def test_the_last_block_of_a_stage_has_no_global_attention():
    assert [block.global_attention is not None for block in stage(depth=3).blocks] == [True, True, False]


@each("options", [{"num_global_tokens": 0}, {"depth": 1}, {"use_global_attention": False}])
def test_positions_exist_only_where_they_are_read(options):
    assert (
        stage(global_position_embedding="table", global_position_rows=99, **options).global_position is None
    )


def test_windows_of_padding_take_no_part_in_global_attention():
    built, features = stage(), torch.randn(1, 12, 4, 8)
    mask = torch.ones(1, 12, 4, dtype=torch.bool)
    mask[:, 8:] = False
    changed = features.clone()
    changed[:, 8:] = 5.0  # in the last window, which is padding alone
    with torch.no_grad():
        difference = (built(changed, mask) - built(features, mask)).abs().amax(dim=-1)
    assert (
        difference[0, 2:6].max() < 1e-6
    )  # the rows that no window of the two blocks shares with the padding


def test_a_window_with_one_pixel_of_image_takes_part():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 3] = mask[0, 0, 7] = True
    padding_mask = tokens_with_image(mask, plan_windows((8, 8), (4, 4)), num_tokens=2)
    assert padding_mask.tolist() == [[True] * 4 + [False] * 4]


def test_patches_are_those_of_a_convolution_over_the_padded_image():
    embed = PatchEmbed(3, 8, (4, 4))
    embed.norm = torch.nn.Identity()
    pixels = torch.randn(2, 3, 10, 7)
    expected = embed.projection(torch.nn.functional.pad(pixels, (0, 1, 0, 2))).permute(0, 2, 3, 1)
    torch.testing.assert_close(embed(pixels), expected)


def test_merging_concatenates_neighbors_with_rows_fastest():
    merge = PatchMerge(1, (2, 2))
    merge.norm, merge.reduction = torch.nn.Identity(), torch.nn.Identity()
    merged = merge(torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]])[None, :, :, None])
    assert merged[0, 0, 0].tolist() == [0, 3, 1, 4]
    assert merged[0, 1, 1].tolist() == [8, 0, 0, 0]


@each("build", [stage, skip_block])
def test_padding_is_no_key_where_it_is_masked(build):
    """More cells of padding, filled with anything, change nothing; and neither do those that fill up the windows."""
    grid, image, built = (3, 5), torch.randn(1, 3, 5, 8), build(num_global_tokens=0, masks_padding=True)
    with torch.no_grad():
        expected = built(image)
        for more in ((3, 5), (3, 7), (6, 5), (9, 13)):
            padded = torch.randn(1, *more, 8)
            padded[:, :3, :5] = image
            present = torch.zeros(1, *more, dtype=torch.bool)
            present[:, :3, :5] = True
            found = built(padded, present)[:, : grid[0], : grid[1]]
            torch.testing.assert_close(found, expected, msg=str(more))
        swin = build(num_global_tokens=0)
        assert (swin(image) - expected).abs().max() > 1e-3  # whose zeros are keys


@each("build", [stage, skip_block])
def test_masking_of_padding_is_no_change_where_windows_fit(build):
    image = torch.randn(2, 8, 4, 8)
    with torch.no_grad():
        assert torch.equal(build(masks_padding=True)(image), build()(image))


@each("block", ["bare", "half", "transformer"])
@each("options", [{}, {"masks_padding": True}, {"depth": 1}])
def test_tokens_that_fill_up_the_keys_change_nothing(block, options):
    built, features = stage(num_global_tokens=10, global_block=block, **options), torch.randn(2, 7, 9, 8)
    seen = []
    built.blocks[0].attention.register_forward_pre_hook(lambda _, given: seen.append(given[1].shape[1]))
    expected = built(features)
    with torch.no_grad():
        torch.testing.assert_close(built(features), expected)
    assert seen == [16 + 10, 32]  # only without gradients


@pytest.mark.slow
@each("options", [{}, {"window": (3, 5)}])
@torch.inference_mode()
def test_a_program_compiled_for_a_cpu_computes_the_same(options):
    built, features = stage(**options), torch.randn(2, 7, 9, 8)
    compiled = torch.compile(built, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(features), built(features), atol=1e-5, rtol=1e-5)


def test_global_tokens_do_not_attend_to_padding():
    built, windows = stage(masks_padding=True), plan_windows((3, 5), (4, 4))
    cut = built.cut(torch.randn(1, 3, 5, 8), None, shifted=False)
    with torch.no_grad():
        bias = built.blocks[0].attention_bias(cut, 1, 2, torch.float32)
    inside = window_partition(torch.ones(1, 3, 5, 1), windows)[0, :, :, 0] > 0
    assert bias.shape == (2, 2, 2 + 16, 2 + 16)
    assert (bias[:, 0, :2, 2:][~inside[:, None].expand(-1, 2, -1)] == -100).all()
    assert (bias[:, 0, :2, 2:][inside[:, None].expand(-1, 2, -1)] == 0).all()


@each(
    ("num_global_tokens", "shifts_windows", "paddings"),
    {
        "plain": (0, True, (0, 1, 4, 9)),
        "tokens": (2, False, (0, 1, 4, 9)),
        "tokens in shifted windows": (2, True, (2, 6, 9)),  # those after a window of padding
        "tokens in shifted windows, which fill the grid": (2, True, (0, 1, 2)),
    },
)
@each("global_block", ["bare", "half", "transformer"])
def test_the_amount_of_padding_does_not_reach_the_image(
    num_global_tokens, shifts_windows, paddings, global_block
):
    options = {"shifts_windows": shifts_windows, "masks_padding": True, "global_block": global_block}
    built = stage(depth=3, num_global_tokens=num_global_tokens, **options)
    rows = 8 if min(paddings) else 6
    image, found = torch.randn(1, rows, 4, 8), []
    for padding in paddings:
        features = torch.nn.functional.pad(image, (0, 0, 0, 0, 0, padding), value=7.0)
        present = (torch.arange(rows + padding) < rows)[None, :, None].expand(1, -1, 4)
        with torch.no_grad():
            found.append(built(features, present)[:, :rows])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-4)
