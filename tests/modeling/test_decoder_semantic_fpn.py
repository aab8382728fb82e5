import torch
import torch.nn.functional as F
from cases import each

from contextseg.modeling.decoder_semantic_fpn import SemanticFpnDecoder

CHANNELS = (4, 6, 8, 10)


def maps(height, width, batch=2):
    sizes = [(height, width)]
    while len(sizes) < len(CHANNELS):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return [torch.randn(batch, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


def written_out(decoder, feature_maps):
    """The figure of the paper, level by level, for sides that halve without a rest."""
    c2, c3, c4, c5 = (
        lateral(map_) for lateral, map_ in zip(decoder.pyramid.laterals, feature_maps, strict=True)
    )
    p5 = c5
    p4 = c4 + F.interpolate(p5, scale_factor=2)
    p3 = c3 + F.interpolate(p4, scale_factor=2)
    p2 = c2 + F.interpolate(p3, scale_factor=2)
    p2, p3, p4, p5 = (
        smooth(level) for smooth, level in zip(decoder.pyramid.smooth, (p2, p3, p4, p5), strict=True)
    )
    total = decoder.branches[0][0](p2)
    for level, branch in zip((p3, p4, p5), list(decoder.branches)[1:], strict=True):
        for convolve in branch:
            level = F.interpolate(convolve(level), scale_factor=2, mode="bilinear", align_corners=False)
        total = total + level
    return total


def test_the_decoder_is_the_papers_figure():
    torch.manual_seed(0)
    decoder = SemanticFpnDecoder(CHANNELS, hidden_size=8).eval()
    feature_maps = maps(16, 24)
    torch.testing.assert_close(decoder(feature_maps).feature_map, written_out(decoder, feature_maps))


@each("size", [(1, 1), (7, 13), (16, 9)])
def test_any_size_gives_a_map_as_large_as_the_finest(size):
    assert SemanticFpnDecoder(CHANNELS, hidden_size=8)(maps(*size, batch=1)).feature_map.shape == (
        1,
        8,
        *size,
    )


def test_parameters_are_those_of_the_usual_implementation():
    with torch.device("meta"):
        decoder = SemanticFpnDecoder((64, 128, 320, 512), hidden_size=128)
        classifier = torch.nn.Conv2d(128, 150, kernel_size=1)
    count = sum(value.numel() for module in (decoder, classifier) for value in module.parameters())
    assert count == 4_266_646
