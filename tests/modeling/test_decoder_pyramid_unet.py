"""Claims about the U-Net decoder over the feature maps of any backbone."""

import pytest
import torch
import torch.nn.functional as F
from cases import each, slow_but
from tiny import tiny_glam_swin, tiny_segdeformer, tiny_segformer
from torch import nn
from transformers import Dinov2Config, SwinConfig, TimmBackboneConfig

from contextseg import SegDeformerConfig, SegDeformerForSemanticSegmentation
from contextseg.modeling.decoder_pyramid_unet import PyramidUnetDecoder

CHANNELS = (6, 8, 10, 12)


def random_pyramid(height, width):
    sides = [(-(-height // 2**level), -(-width // 2**level)) for level in range(len(CHANNELS))]
    return [torch.randn(2, channels, *side) for channels, side in zip(CHANNELS, sides, strict=True)]


def random_decoder(stride):
    """A small decoder with batch statistics unlike those of a new one, in evaluation mode."""
    decoder = PyramidUnetDecoder(CHANNELS, stride, hidden_size=5)
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return decoder.eval()


def plain_unet(decoder, feature_maps):
    """The figure of the paper: upsample, concatenate with the skip, two 3x3 convolutions, down to the finest map."""

    def convolve(block, features):
        return F.relu(block.norm(F.conv2d(features, block.convolution.weight, padding=1)))

    *skips, features = feature_maps
    for step, skip in zip(decoder.steps, reversed(skips), strict=True):
        features = F.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=False)
        features = convolve(step.refine, convolve(step.fuse, torch.cat([skip, features], dim=1)))
    return features


@each("size", [(16, 16), (13, 22), (1, 1), (1, 17)])
@each("stride", [1, 2, 4, 7])
def test_the_decoder_is_the_figure_of_the_paper_and_an_expansion_to_pixels(size, stride):
    decoder, feature_maps = random_decoder(stride), random_pyramid(*size)
    finest = plain_unet(decoder, feature_maps)
    expected = decoder.expand(finest.movedim(1, -1)).movedim(-1, 1)
    decoded = decoder(feature_maps).feature_map
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)
    assert decoded.shape == (2, 5, *(side * stride for side in size))


def test_channels_double_with_each_coarser_level():
    widths = [step.refine.convolution.out_channels for step in random_decoder(4).steps]
    assert widths == [20, 10, 5]


ENCODERS = {
    "a CNN with a map of stride 2": lambda: TimmBackboneConfig(
        backbone="resnet18",
        out_indices=[0, 1, 2, 3, 4],
        use_pretrained_backbone=False,
        model_kwargs={"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8},
    ),
    "a plain vision transformer": lambda: Dinov2Config(
        hidden_size=12, num_hidden_layers=4, num_attention_heads=2, patch_size=14, out_indices=[1, 2, 3, 4]
    ),
    "a pyramid of transformers": lambda: SwinConfig(
        embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    ),
    "one of ours": lambda: tiny_glam_swin().config,
}


@pytest.mark.parametrize("name", slow_but(ENCODERS, "a CNN with a map of stride 2"))
def test_a_unet_over_any_encoder_has_logits_of_every_pixel_and_trains(name):
    model = tiny_segdeformer(backbone_config=ENCODERS[name](), decoder="unet").train()
    pixels, labels = torch.randn(2, 3, 37, 50), torch.randint(0, 3, (2, 37, 50))
    outputs = model(pixels, labels=labels)
    outputs.loss.backward()
    stride = model.backbone.strides[0]
    assert outputs.logits.shape[2:] == tuple(-(-side // stride) * stride for side in (37, 50))
    assert model.config.logits_stride == 1
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


def test_the_widths_of_presets_and_checkpoints_are_those_of_other_decoders(tmp_path):
    tiny_segformer().save_pretrained(tmp_path)
    model = SegDeformerForSemanticSegmentation.from_segformer(tmp_path, decoder="unet")
    assert model.config.decoder_hidden_size == 64
    assert SegDeformerConfig.preset("deit_small", decoder="unet").decoder_hidden_size == 64
    assert SegDeformerConfig.preset("deit_small", decoder="upernet").decoder_hidden_size == 512
