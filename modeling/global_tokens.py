"""GLAM's global tokens: learned tokens that join each window and attend to those of all other windows.

Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation", WACV
2023, section 3.2. As in the authors' code, global tokens have no residual, norm or MLP of their own: each
block replaces them with the output of W-MSA followed by G-MSA. Unlike there, the last G-MSA of a stage is
left out, because nothing reads its output.

Legend: B batch, W windows, T global tokens per window, C channels, G... grid axes.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .windows import Windows, window_partition


class GlobalTokens(nn.Module):
    """The learned initial global tokens of a stage, shared by all windows (the paper's g^0)."""

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(num_tokens, dim))

    def forward(self, batch: int, num_windows: int) -> Tensor:
        """-> (B, W, T, C), the same tokens for every window, without a copy."""
        return self.initial.expand(batch, num_windows, -1, -1)

    def reset_own_weights(self, _std: float) -> None:
        init.normal_(self.initial, std=1.0)  # as in the authors' code, independent of initializer_range


def tokens_with_image(pixel_mask: Tensor | None, windows: Windows, num_tokens: int) -> Tensor | None:
    """Padding mask (B, G...), true for image -> (B, W * T), true for tokens whose window contains image."""
    if pixel_mask is None:
        return None
    covers_image = window_partition(pixel_mask[..., None].float(), windows).amax(dim=(2, 3)) > 0
    return covers_image.repeat_interleave(num_tokens, dim=1)
