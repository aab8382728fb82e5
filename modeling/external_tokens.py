"""What SegDeformer remembers of each class from other images: tokens that are learned, or moving averages of features.

Legend: B batch, C channels, K classes, h, w the sides of a feature map, H, W those of the image.
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
    """Learned tokens, for scoring the classes and for what is told about them (eq. 10), or one set for both."""

    def __init__(self, num_labels: int, dim: int, decouple: bool) -> None:
        super().__init__()
        self.class_tokens = nn.Parameter(TOKEN_STD * torch.randn(num_labels, dim))
        self.info_tokens = nn.Parameter(TOKEN_STD * torch.randn(num_labels, dim)) if decouple else None

    def forward(self) -> tuple[Tensor, Tensor]:
        """-> tokens that score and tokens that inform, both (K, C)."""
        return self.class_tokens, self.class_tokens if self.info_tokens is None else self.info_tokens

    def reset_own_weights(self, _std: float) -> None:
        for tokens in self.parameters():
            init.normal_(tokens, std=TOKEN_STD)


class MomentumTokens(LabelRows):
    """Moving averages of the class means of features: what Table 5 compares learned tokens with.

    After the memory of Jin et al., "Mining Contextual Information Beyond Image for Semantic Segmentation" (ICCV 2021), with a
    constant momentum and plain means; theirs decays the rate in training and weighs pixels by similarity. A mean has one
    meaning, so the same tokens score and inform.
    """

    def __init__(self, num_labels: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("class_tokens", TOKEN_STD * torch.randn(num_labels, dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        """-> twice the same tokens (K, C)."""
        # A copy: the update must not change what the backward pass of this step still reads.
        tokens = self.class_tokens.clone() if self.training else self.class_tokens
        return tokens, tokens

    @torch.no_grad()
    def update(self, feature_map: Tensor, labels: Tensor, ignore_index: int) -> None:
        """(B, C, h, w), (B, H, W): moves the tokens of the classes present towards their mean, over all processes.

        Features take the label nearest to them. Other classes keep their tokens, at first random ones.
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
    """(B, C, h, w), (B, H, W) -> sums of each class's features (K, C), and their counts (K,)."""
    check_labels(labels, num_labels, ignore_index)
    labels = torch.where(labels == ignore_index, num_labels, labels.long())
    nearest = F.interpolate(labels[:, None].double(), size=feature_map.shape[-2:], mode="nearest-exact")
    members = F.one_hot(nearest.long().flatten(), num_labels + 1)[:, :-1]
    features = feature_map.permute(0, 2, 3, 1).flatten(0, 2).float()
    with torch.autocast(features.device.type, enabled=False):
        return members.to(features.dtype).transpose(0, 1) @ features, members.sum(dim=0)
