"""SegDeformer's external tokens, one per class: learned, or moving averages of features.

Legend: B batch, C channels, K classes, h, w height and width of a feature map, H, W those of the image.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .label_rows import LabelRows
from .losses import check_labels

TOKEN_STD = 0.02  # the authors'
MOMENTUM = 0.9


class LearnedTokens(LabelRows):
    """Learned tokens: class tokens for the scores and information tokens for the features (eq. 10).

    Args:
        num_labels: Number of classes K.
        dim: Channels C.
        decouple: Whether to learn two separate sets; False shares one set for both purposes.
    """

    def __init__(self, num_labels: int, dim: int, decouple: bool) -> None:
        super().__init__()
        self.class_tokens = nn.Parameter(TOKEN_STD * torch.randn(num_labels, dim))
        self.info_tokens = nn.Parameter(TOKEN_STD * torch.randn(num_labels, dim)) if decouple else None

    def forward(self) -> tuple[Tensor, Tensor]:
        """-> class tokens (K, C), information tokens (K, C)."""
        return self.class_tokens, self.class_tokens if self.info_tokens is None else self.info_tokens

    def reset_own_weights(self, _std: float) -> None:
        for tokens in self.parameters():
            init.normal_(tokens, std=TOKEN_STD)


class MomentumTokens(LabelRows):
    """Moving averages of each class's mean feature, with which Table 5 compares learned tokens.

    This follows the memory of Jin et al., "Mining Contextual Information Beyond Image for Semantic
    Segmentation" (ICCV 2021), but with constant momentum and plain means; theirs decays the momentum during
    training and weights pixels by similarity. The same tokens serve as class tokens and information tokens.

    Args:
        num_labels: Number of classes K.
        dim: Channels C.
    """

    def __init__(self, num_labels: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("class_tokens", TOKEN_STD * torch.randn(num_labels, dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        """-> the same tokens (K, C) twice."""
        # A copy in training: the in-place update must not change what the backward pass of this step reads.
        tokens = self.class_tokens.clone() if self.training else self.class_tokens
        return tokens, tokens

    @torch.no_grad()
    def update(self, feature_map: Tensor, labels: Tensor, ignore_index: int) -> None:
        """Moves the tokens of the classes present toward their mean features, over all processes.

        Labels are downsampled to the feature map by nearest neighbor. Absent classes keep their tokens, which
        start random.

        Args:
            feature_map: Features (B, C, h, w).
            labels: Class ids (B, H, W).
            ignore_index: Label of pixels that are left out.
        """
        sums, counts = class_sums(feature_map, labels, len(self.class_tokens), ignore_index)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        means = (sums / counts.clamp(min=1)[:, None]).to(self.class_tokens.dtype)
        moved = torch.lerp(means, self.class_tokens, MOMENTUM)
        self.class_tokens.copy_(torch.where(counts[:, None] > 0, moved, self.class_tokens))

    def reset_own_weights(self, _std: float) -> None:
        init.normal_(self.class_tokens, std=TOKEN_STD)


EXTERNAL_TOKENS = {
    "learned": LearnedTokens,
    "momentum": lambda num_labels, dim, decouple: MomentumTokens(num_labels, dim),  # noqa: ARG005
}


def class_sums(
    feature_map: Tensor, labels: Tensor, num_labels: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """(B, C, h, w), labels (B, H, W) -> sums of the features of each class (K, C), and their counts (K,)."""
    check_labels(labels, num_labels, ignore_index)
    labels = torch.where(labels == ignore_index, num_labels, labels.long())
    nearest = F.interpolate(labels[:, None].double(), size=feature_map.shape[-2:], mode="nearest-exact")
    members = F.one_hot(nearest.long().flatten(), num_labels + 1)[:, :-1]
    features = feature_map.permute(0, 2, 3, 1).flatten(0, 2).float()
    with torch.autocast(features.device.type, enabled=False):
        return members.to(features.dtype).transpose(0, 1) @ features, members.sum(dim=0)
