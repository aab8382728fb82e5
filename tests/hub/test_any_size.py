"""Models traced for images of any size: what is replaced meanwhile computes the same, at sizes with one window too."""

import pytest
import torch
from cases import each
from torch import nn
from torch.export import Dim, export
from transformers.models.swin.configuration_swin import SwinConfig
from transformers.models.swin.modeling_swin import SwinLayer, SwinModel, SwinPatchEmbeddings, SwinPatchMerging

from contextseg.hub.any_size import for_any_size, padded

PARTS = SwinLayer, SwinPatchMerging, SwinPatchEmbeddings


def swin():
    return SwinModel(SwinConfig(embed_dim=8, num_heads=[1, 1], depths=[1, 1], window_size=7))


class Windowed(nn.Module):
    """What encoders of other libraries do: pooling, crops of padded maps, a tensor repeated for each image."""

    def __init__(self):
        super().__init__()
        self.pool, self.token = nn.AdaptiveAvgPool2d((2, 3)), nn.Parameter(torch.randn(1, 3, 1, 1))

    def forward(self, features):
        batch, channels, height, width = features.shape
        padded = nn.functional.pad(
            features, (0, (width + 6) // 7 * 7 - width, 0, (height + 6) // 7 * 7 - height)
        )
        cropped = (2 * padded)[:, :, :height, :width].contiguous().view(batch, channels, height * width)
        codes = self.token.expand(batch, -1, -1, -1).reshape(batch, channels)
        return self.pool(features), cropped, codes


@pytest.mark.slow
def test_a_program_holds_for_sizes_other_than_the_traced_one():
    model, free = Windowed().eval(), {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    with torch.no_grad(), for_any_size(model):
        program = export(model, (torch.zeros(2, 3, 40, 50),), dynamic_shapes=(free,), strict=False).module()
    for size in ((1, 3, 2, 3), (1, 3, 7, 7), (3, 3, 21, 5), (2, 3, 9, 63)):
        features = torch.randn(size)
        for result, expected in zip(program(features), model(features), strict=True):
            torch.testing.assert_close(result, expected)


@each("size", [(1, 1), (5, 7), (8, 14)])
def test_padding_is_that_of_swin(size):
    height, width = size
    layer, merging, embeddings = (
        next(part for part in swin().modules() if isinstance(part, kind)) for kind in PARTS
    )
    features = torch.randn(2, height, width, 8)
    expected, widths = layer.maybe_pad(features, height, width)
    result, marks = padded(layer, features, height, width)
    assert torch.equal(result, expected)
    assert all(mark >= (step > 0) for mark, step in zip(marks, widths, strict=True))
    assert torch.equal(padded(merging, features, *size), merging.maybe_pad(features, *size))
    images = torch.randn(1, 3, height, width)
    assert torch.equal(padded(embeddings, images, *size), embeddings.maybe_pad(images, *size))


def test_a_model_is_as_it_was_after_tracing():
    model = swin()
    parts = [part for part in model.modules() if isinstance(part, PARTS)]
    with for_any_size(model):
        assert all("maybe_pad" in vars(part) for part in parts)
    assert not any("maybe_pad" in vars(part) for part in parts)
