"""The decoder of nnFormer (Zhou et al., 2023): stages from coarse to fine, each after a transposed convolution and a
skip connection, and heads of the coarser ones for deep supervision.

Legend: B batch, C channels, G... grid axes, g... those of the next coarser grid, K labels, S... volume axes.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .blocks import Decoded
from .label_rows import VolumeClassifier
from .patches import patches_with_image


class NnFormerStep(nn.Module):
    """Decodes from one resolution to the next finer one.

    Args:
        upsample: Module from features (B, g..., C') and the finer grid to features (B, G..., C).
        skip: Module that joins two features (B, G..., C), with a mask (B, G...), to one of the same shape.
        stage: Module from features (B, G..., C) and a mask (B, G...) to features of the same shape.
    """

    def __init__(self, upsample: nn.Module, skip: nn.Module, stage: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.skip = skip
        self.stage = stage

    def forward(self, features: Tensor, skip: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, g..., C'), skip (B, G..., C), optional padding mask (B, S...), 1 for image -> (B, G..., C)."""
        present = patches_with_image(pixel_mask, skip)
        features = self.skip(self.upsample(features, tuple(skip.shape[1:-1])), skip, present)
        return self.stage(features, present)


class NnFormerDecoder(nn.Module):
    """From the features of all encoder stages to those of the finest, with the heads of coarser ones.

    Args:
        steps: Decoder steps, coarse to fine.
        heads: Classifiers of the coarser steps, fine to coarse, without the finest; some or none.
    """

    def __init__(self, steps: Sequence[NnFormerStep], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.heads = nn.ModuleList(heads)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:
        """Maps (B, C_i, G_i...), fine to coarse -> the finest (B, C_0, G_0...), and coarser ones of the heads.

        Args:
            feature_maps: Layer-normed outputs of all encoder stages.
            pixel_mask: Optional padding mask (B, S...), 1 for image and 0 for padding.
        """
        *skips, features = [feature_map.movedim(1, -1) for feature_map in feature_maps]
        decoded = []
        for step, skip in zip(self.steps, skips[::-1], strict=True):
            features = step(features, skip, pixel_mask)
            decoded.insert(0, features.movedim(-1, 1))
        return Decoded(decoded[0], coarser_maps=tuple(decoded[1 : 1 + len(self.heads)]))

    def coarser_logits(self, coarser_maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, G_i...) of the coarser stages -> their logits (B, K, s_i...), fine to coarse."""
        return [head(level) for head, level in zip(self.heads, coarser_maps, strict=True)]


def build_nnformer_decoder(
    config: PreTrainedConfig, build_step: Callable[[int], NnFormerStep]
) -> NnFormerDecoder:
    """Builds the decoder from an `NnFormerConfig` and a function that builds the step to a stage from its index."""
    steps = [build_step(stage) for stage in reversed(range(config.num_layers - 1))]
    heads = [
        VolumeClassifier(config.hidden_sizes[stage], config.num_labels, kernel)
        for stage, kernel in enumerate(config.head_kernels)
    ]
    return NnFormerDecoder(steps, heads[1:])


def finest_classifier(config: PreTrainedConfig) -> VolumeClassifier:
    """Builds the classifier of the finest stage, to full resolution, from an `NnFormerConfig`."""
    kernel = config.head_kernels[0]
    return VolumeClassifier(config.hidden_sizes[0], config.num_labels, kernel)
