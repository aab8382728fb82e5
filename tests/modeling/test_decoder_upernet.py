"""Claims about the UPerNet decoder and its auxiliary head."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch import Tensor, nn
from torch.export import Dim

from contextseg.modeling.decoder_upernet import FcnHead, UperNetDecoder

CHANNELS = (6, 8, 10, 12)


def plain_upernet(decoder: UperNetDecoder, feature_maps: list[Tensor]) -> Tensor:
    """The figure of the paper, word by word: everything resized and concatenated before the 3x3 convolutions."""

    def resize(feature_map: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(feature_map, like.shape[-2:], mode="bilinear", align_corners=False)

    def fuse(block: nn.Module, concatenated: Tensor) -> Tensor:
        return F.relu(block.norm(F.conv2d(concatenated, block.convolution.weight, padding=1)))

    top = feature_maps[-1]
    pooled = [
        resize(branch(F.adaptive_avg_pool2d(top, scale)), top)
        for scale, branch in zip((1, 2, 3, 6), decoder.pooling.branches, strict=True)
    ]
    laterals = [lateral(m) for lateral, m in zip(decoder.laterals, feature_maps[:-1], strict=True)]
    laterals.append(fuse(decoder.pooling.bottleneck, torch.cat([top, *pooled], dim=1)))
    for level in range(len(laterals) - 1, 0, -1):
        laterals[level - 1] = laterals[level - 1] + resize(laterals[level], laterals[level - 1])
    outputs = [conv(lateral) for conv, lateral in zip(decoder.fpn_convs, laterals[:-1], strict=True)]
    outputs.append(laterals[-1])
    return fuse(decoder.fusion, torch.cat([resize(output, outputs[0]) for output in outputs], dim=1))


def random_decoder(channels=CHANNELS) -> UperNetDecoder:
    """A small decoder with batch statistics unlike those of a new one, in evaluation mode."""
    decoder = UperNetDecoder(channels, hidden_size=7, dropout=0.0)
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return decoder.eval()


def random_pyramid(height: int, width: int, batch: int = 2, channels=CHANNELS) -> list[Tensor]:
    sides = [(-(-height // 2**level), -(-width // 2**level)) for level in range(len(channels))]
    return [torch.randn(batch, c, *side) for c, side in zip(channels, sides, strict=True)]


@each("size", [(16, 16), (13, 22), (8, 8), (1, 1), (5, 3), (1, 17)])
def test_decoder_equals_the_figure_of_the_paper(size):
    decoder, feature_maps = random_decoder(), random_pyramid(*size)
    torch.testing.assert_close(
        decoder(feature_maps).feature_map, plain_upernet(decoder, feature_maps), atol=1e-5, rtol=1e-5
    )


@pytest.mark.slow
@each("size", [(13, 22), (1, 1)])
@torch.inference_mode()
def test_a_program_compiled_for_a_cpu_equals_the_figure_of_the_paper(size):
    decoder, feature_maps = random_decoder(), random_pyramid(*size)
    operations = []

    def record(program: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        operations.extend(node.target for node in program.graph.nodes)
        return program

    compiled = torch.compile(decoder, fullgraph=True, dynamic=False, backend=record)
    torch.testing.assert_close(
        compiled(feature_maps).feature_map, plain_upernet(decoder, feature_maps), atol=1e-5, rtol=1e-5
    )
    assert not {F.interpolate, F.adaptive_avg_pool2d} & set(operations)


def test_decoder_equals_the_figure_while_training_too():
    decoder, feature_maps = random_decoder().double().train(), random_pyramid(14, 9)
    feature_maps = [m.double() for m in feature_maps]
    result, expected = decoder(feature_maps).feature_map, plain_upernet(decoder, feature_maps)
    torch.testing.assert_close(result, expected)
    gradients = torch.autograd.grad(result.square().sum(), list(decoder.parameters()))
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected.square().sum(), list(decoder.parameters()))
    )


@each("channels", [(4, 6), (4, 6, 8), (2, 3, 4, 5, 6)])
def test_decoder_takes_any_number_of_scales(channels):
    decoder, feature_maps = random_decoder(channels), random_pyramid(11, 12, channels=channels)
    torch.testing.assert_close(
        decoder(feature_maps).feature_map, plain_upernet(decoder, feature_maps), atol=1e-5, rtol=1e-5
    )


@each("size", [(8, 8), (1, 1)])
def test_a_batch_of_one_trains_every_parameter(size):
    decoder = random_decoder().train()
    decoder(random_pyramid(*size, batch=1)).feature_map.square().sum().backward()
    assert [
        name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []


def test_images_of_a_batch_do_not_influence_each_other():
    decoder, feature_maps = random_decoder(), random_pyramid(12, 10)
    alone = decoder([m[1:] for m in feature_maps]).feature_map
    torch.testing.assert_close(decoder(feature_maps).feature_map[1:], alone, atol=1e-6, rtol=1e-5)


def test_dropout_silences_whole_channels_of_the_fused_map():
    decoder, feature_maps = random_decoder(), random_pyramid(12, 10)
    expected = decoder(feature_maps).feature_map
    decoder.dropout.train().p = 0.5
    result = decoder(feature_maps).feature_map
    silent = result.eq(0).all(-1).all(-1)
    assert silent.any()
    torch.testing.assert_close(result[~silent], 2 * expected[~silent])


def test_parameter_names_are_those_of_saved_checkpoints():
    names = {name for name, _ in UperNetDecoder(CHANNELS, 7).named_parameters()}
    blocks = ["pooling.bottleneck", "fusion", *[f"pooling.branches.{k}" for k in range(4)]]
    blocks += [f"{group}.{level}" for group in ("laterals", "fpn_convs") for level in range(3)]
    assert names == {f"{b}.{p}" for b in blocks for p in ("convolution.weight", "norm.weight", "norm.bias")}


def test_parameter_counts_are_those_of_the_authors_heads():
    with torch.device("meta"):
        head = nn.ModuleList([UperNetDecoder((96, 192, 384, 768)), nn.Conv2d(512, 150, 1)])
        auxiliary = FcnHead(384, 256, 150)
    assert sum(p.numel() for p in head.parameters()) == 31_497_366
    assert sum(p.numel() for p in auxiliary.parameters()) == 923_798


def test_auxiliary_head_keeps_the_size_and_gives_one_channel_per_label():
    assert FcnHead(6, 5, 3)(torch.randn(2, 6, 7, 4)).shape == (2, 3, 7, 4)


class PyramidThenDecoder(nn.Module):
    """Stands for a backbone: halves the map with ceil division, as ours does."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = random_decoder((3, 3, 3, 3))

    def forward(self, feature_map: Tensor) -> Tensor:
        feature_maps = [feature_map]
        for _ in range(3):
            feature_maps.append(F.max_pool2d(feature_maps[-1], 1, stride=2))
        return self.decoder(feature_maps).feature_map


@pytest.mark.slow
def test_exported_decoder_takes_any_batch_height_and_width():
    model = PyramidThenDecoder().eval()
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    program = torch.export.export(model, (torch.randn(2, 3, 36, 44),), dynamic_shapes=(free,)).module()
    for size in ((2, 3, 36, 44), (3, 3, 33, 50), (1, 3, 17, 64)):
        image = torch.randn(size)
        torch.testing.assert_close(program(image), model(image), atol=1e-5, rtol=1e-5)
