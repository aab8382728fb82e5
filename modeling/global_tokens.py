"""GLAM's global tokens: learned tokens that join each window and attend to those of all other windows.

Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation", WACV
2023, section 3.2. As in the authors' code, global tokens have no residual, norm or MLP of their own: each
block replaces them with the output of W-MSA followed by G-MSA; other paths are "half" and "transformer". Unlike
there, the last G-MSA of a stage is left out, because nothing reads its output.

Legend: B batch, W windows, T global tokens per window, C channels, G... grid axes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .attention import Attention, padding_bias
from .blocks import Mlp
from .windows import ShiftMasks, Windows, window_partition

INITIAL_STD = {"bare": 1.0, "half": 1.0, "transformer": 0.02}  # by path; benchmarks/glam_forms.md


class GlobalTokens(nn.Module):
    """The learned initial global tokens of a stage, shared by all windows (the paper's g^0).

    They start with a standard deviation of 1, as in the authors' code. On the path "transformer", where blocks add to the
    tokens, it is ours, 0.02: what the first blocks add then counts.
    """

    def __init__(self, num_tokens: int, dim: int, global_block: str = "bare") -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(num_tokens, dim))
        self.initial_std = INITIAL_STD[global_block]

    def forward(self, batch: int, num_windows: int) -> Tensor:
        """-> (B, W, T, C), the same tokens for every window, without a copy."""
        return self.initial.expand(batch, num_windows, -1, -1)

    def reset_own_weights(self, _std: float) -> None:
        init.normal_(self.initial, std=self.initial_std)  # independent of initializer_range


def tokens_with_image(pixel_mask: Tensor | None, windows: Windows, num_tokens: int) -> Tensor | None:
    """Padding mask (B, G...), true for image -> (B, W * T), true for tokens whose window contains image."""
    if pixel_mask is None:
        return None
    covers_image = window_partition(pixel_mask[..., None].float(), windows).amax(dim=(2, 3)) > 0
    return covers_image.repeat_interleave(num_tokens, dim=1)


def bias_with_tokens(
    bias: Tensor | None,
    masks: ShiftMasks | None,
    batch: int,
    num_tokens: int,
    asking_tokens: int,
    hidden: int = 0,
) -> Tensor | None:
    """Additive bias of W-MSA over [T ; window ; hidden]: zero in the rows and columns of global tokens.

    Args:
        bias: Relative position bias (heads, N, N), or None.
        masks: Masks of shifted windows, or None.
        batch: Number of images.
        num_tokens: Global tokens per window among the keys.
        asking_tokens: Global tokens per window among the queries.
        hidden: Tokens that nothing attends to among the keys, and with global tokens among the queries.

    Returns:
        (1 or B * W, heads or 1, asking + N, T + N), or None without bias and mask.
    """
    if bias is None and masks is None:
        return None
    parts = (None if bias is None else bias[None], None if masks is None else masks.of_kinds[:, None])
    of_kinds = sum(part for part in parts if part is not None)
    for axis, count in ((3, num_tokens), (2, asking_tokens)):
        of_kinds = zeros_before(of_kinds, count, axis)
    if hidden:
        lowest = torch.finfo(of_kinds.dtype).min / 2
        of_kinds = F.pad(of_kinds, (0, hidden, 0, hidden if asking_tokens else 0), value=lowest)
    return of_kinds if masks is None else of_kinds.index_select(0, masks.kinds.repeat(batch))


def zeros_before(bias: Tensor, count: int, axis: int) -> Tensor:
    """(..., N, ...) -> (..., count + N, ...); torch.compile takes longer for `F.pad`, whose arithmetic nests with that before it."""
    if not count:
        return bias
    shape = (*bias.shape[:axis], count, *bias.shape[axis + 1 :])
    return torch.cat([bias.new_zeros(shape), bias], dim=axis)


class AcrossWindows(nn.Module):
    """What blocks with G-MSA share: its weights, and the update of the global tokens.

    The block has `drop_path`, and sets `global_block` ("bare", "half" or "transformer") and `global_clamp`.
    """

    def build_global_attention(
        self, config: PreTrainedConfig, dim: int, num_heads: int, mlp_ratio: float, layer_norm_eps: float
    ) -> None:
        """Adds G-MSA, and with "transformer" its norms and MLP."""
        self.global_attention = Attention(config, dim, num_heads)
        if self.global_block == "transformer":
            self.global_norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
            self.global_norm2 = nn.LayerNorm(dim, eps=layer_norm_eps)
            self.global_mlp = Mlp(dim, int(dim * mlp_ratio))

    def mix_across_windows(
        self, global_tokens: Tensor, position: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """G-MSA over all W * T global tokens: (B, W, T, C) -> the same shape.

        Args:
            global_tokens: Global tokens of all windows (B, W, T, C).
            position: Position embedding (W * T, C), not with "transformer".
            padding_mask: (B, W * T), True for tokens whose window contains image.
        """
        tokens = global_tokens.flatten(1, 2)
        bias = None if padding_mask is None else padding_bias(padding_mask, tokens.dtype)
        if self.global_block == "transformer":
            tokens = tokens + self.drop_path(self.global_attention(self.global_norm1(tokens), bias=bias)[0])
            tokens = tokens + self.drop_path(self.global_mlp(self.global_norm2(tokens)))
        else:
            if position is not None:
                tokens = tokens + position.to(tokens.dtype)
            tokens, _ = self.global_attention(tokens, bias=bias)
        if self.global_clamp is not None:
            tokens = tokens.clamp(-self.global_clamp, self.global_clamp)
        return tokens.reshape(global_tokens.shape)
