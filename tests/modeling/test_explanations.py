import pytest
import torch
from tiny import tiny_glam_swin, tiny_glam_swin_volumes

from contextseg import global_attention_maps


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = tiny_glam_swin(depths=(4, 2)).eval()
    for parameter in built.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built


def brute_force(model, pixels, block, window, token):
    """Eq. 7 from the attention matrices themselves, for images of whole windows: (B, windows, patches)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixels, output_attentions=True).attentions
    a, b = (attentions[2 * block + kind].mean(dim=1) for kind in (0, 1))  # W-MSA, G-MSA
    batch, tokens = b.shape[0], model.config.num_global_tokens
    a = a.unflatten(0, (batch, -1))[:, :, :tokens]
    b = b[:, window * tokens + token].unflatten(1, (-1, tokens))
    to_patches, to_tokens = a[..., tokens:], a[..., :tokens]
    maps = torch.zeros(batch, a.shape[1], to_patches.shape[-1])
    for other in range(a.shape[1]):
        for j in range(tokens):
            maps[:, other] += b[:, other, j, None] * to_patches[:, other, j]
            maps[:, other] += (
                b[:, other, j, None] * to_tokens[:, other, j].sum(-1, keepdim=True) / maps.shape[-1]
            )
    return maps


@pytest.mark.parametrize("path", ["half", "transformer"])
def test_the_map_is_equation_7_for_every_path_of_the_tokens(path):
    torch.manual_seed(0)
    built = tiny_glam_swin(global_block=path).eval()
    for parameter in built.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    pixels = torch.randn(2, 3, 32, 48)
    maps = global_attention_maps(built, pixels, position=(40, 20), token=1, block=0)
    expected = brute_force(built, pixels, block=0, window=5, token=1)
    expected = expected.unflatten(1, (2, 3)).unflatten(3, (4, 4)).transpose(2, 3).reshape(2, 8, 12)
    torch.testing.assert_close(maps[:, ::4, ::4], expected / 16)


def test_maps_of_volumes_have_their_size_and_sum_to_one():
    volumes = torch.randn(2, 1, 3, 33, 21)
    maps = global_attention_maps(tiny_glam_swin_volumes(), volumes, position=(20, 32, 2), stage=1)
    assert maps.shape == (2, 3, 33, 21)
    torch.testing.assert_close(maps.flatten(1).sum(1), torch.ones(2))


@pytest.mark.parametrize("token", [0, 1])
def test_the_map_is_equation_7_from_the_attention_matrices(model, token):
    pixels = torch.randn(2, 3, 32, 48)  # 8 x 12 patches: 2 x 3 windows
    maps = global_attention_maps(model, pixels, position=(40, 20), token=token, block=0)
    expected = brute_force(model, pixels, block=0, window=5, token=token)
    expected = expected.unflatten(1, (2, 3)).unflatten(3, (4, 4)).transpose(2, 3).reshape(2, 8, 12)
    pixels_of_patches = expected.repeat_interleave(4, 1).repeat_interleave(4, 2) / 16
    torch.testing.assert_close(maps, pixels_of_patches)


def test_maps_of_shifted_windows_lie_where_the_image_is(model):
    pixels = torch.randn(1, 3, 32, 32)
    maps = global_attention_maps(model, pixels, position=(9, 9), token=0, block=1)
    window = brute_force(model, pixels, block=1, window=0, token=0)[0, 0].reshape(
        4, 4
    )  # shifted by two patches
    torch.testing.assert_close(maps[0, 8:24:4, 8:24:4], window / 16)


@pytest.mark.parametrize("size", [(32, 48), (33, 21), (5, 70)], ids=str)
def test_maps_have_the_size_of_the_image_and_sum_to_one(model, size):
    maps = global_attention_maps(model, torch.randn(2, 3, *size), position=(size[1] - 1, size[0] - 1))
    assert maps.shape == (2, *size)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(2))
    assert (maps >= 0).all()


def test_no_token_means_the_average_of_all(model):
    pixels = torch.randn(1, 3, 32, 32)
    each = [global_attention_maps(model, pixels, (3, 3), token=token) for token in range(2)]
    torch.testing.assert_close(global_attention_maps(model, pixels, (3, 3)), sum(each) / 2)


@pytest.mark.parametrize("tokens", [2, 10])  # with 10, "sdpa" fills up the keys
def test_sdpa_and_eager_give_the_same_map(tokens):
    model, pixels = tiny_glam_swin(num_global_tokens=tokens).eval(), torch.randn(1, 3, 32, 32)
    sdpa = global_attention_maps(model, pixels, (3, 3))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(global_attention_maps(model, pixels, (3, 3)), sdpa)


def test_the_last_block_with_global_attention_is_taken_by_default(model):
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        global_attention_maps(model, pixels, (3, 3)), global_attention_maps(model, pixels, (3, 3), block=2)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": (32, 0)}, "outside the image of 32x32"),
        ({"position": (0, 0), "block": 3}, r"Choose one of \[0, 1, 2\]"),
        ({"position": (0, 0), "stage": 2}, "Choose 0 to 1"),
    ],
)
def test_what_does_not_exist_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        global_attention_maps(model, torch.randn(1, 3, 32, 32), **options)


def test_models_without_global_attention_are_refused():
    with pytest.raises(ValueError, match="num_global_tokens > 0"):
        global_attention_maps(tiny_glam_swin(num_global_tokens=0), torch.randn(1, 3, 8, 8), (0, 0))
