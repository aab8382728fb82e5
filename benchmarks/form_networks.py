"""The networks of `glam_forms`: a small GLAM-Swin-Unet with a position encoding and initial tokens of any form.

What is no option of `GlamSwinConfig` is put in after building: sines with a small amplitude, positions in the
"transformer" path, which has none in the authors' code, and initial tokens with another standard deviation. All
networks of a path and seed so start from the same other weights.

Legend: B batch, W windows, T global tokens per window, C channels.
"""

from math import prod

from torch import Tensor, nn
from transformers import initialization as init

from ..modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation
from ..modeling.positions import GlobalPositionSinCos, GlobalPositionTable, sincos_places
from ..modeling.swin_stages import SwinStage
from ..modeling.windows import Windows, plan_windows
from .context_networks import Network, SceneBatch, predict

TOKENS, PATCH, WINDOW = 4, 4, 2
START = 0.02  # amplitude of the sines, and standard deviation of learned positions, as of the authors' table


class FaintSines(GlobalPositionSinCos):
    """`GlobalPositionSinCos` with sines of the amplitude `START` instead of 1."""

    def forward(self, windows: Windows) -> Tensor:
        """-> (W * T, C)."""
        places = sincos_places(windows.counts, self.token_code.shape[1], self.token_code.device)
        return (START * places[:, None] + self.token_code).flatten(0, 1)


class PlacedNorm(nn.Module):
    """The norm before G-MSA in the "transformer" path, with the positions added to what it gives."""

    def __init__(self, norm: nn.Module, position: nn.Module, windows: Windows) -> None:
        super().__init__()
        self.norm, self.position, self.windows = norm, position, windows

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, W * T, C) -> the same shape."""
        return self.norm(tokens) + self.position(self.windows)


def new_model(path: str, positions: str, initial: float, size: int, weights_std: float) -> nn.Module:
    """A Unet of 2 stages for square images of `size` pixels; only the second stage has G-MSA."""
    config = Network(TOKENS).config(
        global_block=path, window_size=WINDOW, patch_size=PATCH, initializer_range=weights_std
    )
    model = GlamSwinForSemanticSegmentation(config)
    stages = [
        each for each in model.modules() if isinstance(each, SwinStage) and each.global_tokens is not None
    ]
    for number, stage in enumerate(stages):
        tokens = stage.global_tokens
        tokens.initial.data.mul_(initial / tokens.initial_std)
        side = size // (PATCH * 2**number)
        if positions != "none" and len(stage.blocks) > 1:  # the last block has no G-MSA
            place(stage, positions, plan_windows((side, side), (WINDOW, WINDOW)))
    return model


def place(stage: SwinStage, positions: str, windows: Windows) -> None:
    """Adds positions to what G-MSA attends to, in its queries, keys and values."""
    count, dim = stage.global_tokens.initial.shape
    if positions == "table":
        position = GlobalPositionTable(prod(windows.counts) * count, count, dim)
    else:
        position = FaintSines(count, dim)
    for parameter in position.parameters():
        init.normal_(parameter, std=START)
    blocks = [block for block in stage.blocks if block.global_attention is not None]
    if blocks[0].global_block != "transformer":
        stage.global_position = position
        return
    for block in blocks:
        block.global_norm1 = PlacedNorm(block.global_norm1, position, windows)


def follows(model: nn.Module, both: tuple[SceneBatch, SceneBatch], far: Tensor) -> float:
    """Share of far white pixels, (N, S, S), whose predicted class changes when only the flag is repainted."""
    training = model.training
    model.eval()
    first, second = (predict(model, images) for images in both)
    model.train(training)
    return float((first != second)[far].float().mean())
