"""3x3 convolution with a quarter of the multiply-adds, for inference on a CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: a tile of 4x4 outputs reads 6x6 inputs.
Both are transformed linearly, and between the transforms channels are mixed once for each of the 36 places of a tile,
instead of nine times for each of its 16 outputs. The points of interpolation (0, 1, -1, 1/2, -2, infinity) are not the
paper's: with these, rounding errors are about twice those of the direct convolution in float32, and not three times.

Legend: B batch, C input channels, C' output channels, H, W height and width, P places of a tile, T tiles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OF_INPUTS = (  # along one axis
    (2, -3, -4, 3, 2, 0),
    (0, -2, 1, 5, 2, 0),
    (0, -2, 5, -1, -2, 0),
    (0, 2, 1, -2, -1, 0),
    (0, 1, -2, -1, 2, 0),
    (0, 2, -3, -4, 3, 2),
)
OF_KERNEL = (
    (1 / 2, 0, 0),
    (1 / 6, 1 / 6, 1 / 6),
    (1 / 6, -1 / 6, 1 / 6),
    (16 / 15, 8 / 15, 4 / 15),
    (1 / 30, -1 / 15, 2 / 15),
    (0, 0, 1 / 2),
)
TO_OUTPUTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)
KERNEL, TILE, SPAN = 3, 4, 6  # of the convolution, outputs and inputs of a tile along an axis
STRIP_TILES = 128  # tiles transformed at once: they stay in the cache
MIN_CHANNELS = 256  # with fewer channels or tiles, the transforms cost more than they save
MIN_TILES = 128


class WinogradConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the spatial size, by Winograd's algorithm where that saves time.

    It keeps the constructor of `nn.Conv2d`, with which peft builds the adapter of a convolution.
    """

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        if self.bias is None and saves_time(feature_map, self.weight):
            return winograd_convolution(feature_map, self.weight)
        return super().forward(feature_map)


def convolution3x3(feature_map: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W), (C', C, 3, 3) -> (B, C', H, W); equals F.conv2d(feature_map, weight, padding=1)."""
    if saves_time(feature_map, weight):
        return winograd_convolution(feature_map, weight)
    return F.conv2d(feature_map, weight, padding=1)


def saves_time(feature_map: Tensor, weight: Tensor) -> bool:
    """Whether Winograd's algorithm is faster for (B, C, H, W), (C', C, k, k): large 3x3 inference in float32 on a CPU."""
    is_inference = not torch.is_grad_enabled() and not torch.compiler.is_exporting()
    on_cpu = feature_map.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    is_single = feature_map.dtype == weight.dtype == torch.float32
    if not (is_inference and on_cpu and is_single and weight.shape[2:] == (KERNEL, KERNEL)):
        return False
    tiles = feature_map.shape[0] * feature_map.shape[2:].numel() // TILE**2
    return min(weight.shape[:2]) >= MIN_CHANNELS and tiles >= MIN_TILES


def winograd_convolution(feature_map: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W), (C', C, 3, 3) -> (B, C', H, W), with channels fastest in memory."""
    batch, _, height, width = feature_map.shape
    rows, columns = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    widths = (0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height)
    padded = F.pad(feature_map.permute(0, 2, 3, 1), widths)
    tiles = padded.unfold(1, SPAN, TILE).unfold(2, SPAN, TILE)  # (B, rows, columns, C, 6, 6)
    of_inputs, of_kernel, to_outputs = (
        transform_of_tile(matrix, weight) for matrix in (OF_INPUTS, OF_KERNEL, TO_OUTPUTS)
    )
    mixing = (of_kernel @ weight.flatten(2).flatten(0, 1).T).unflatten(1, weight.shape[:2]).transpose(1, 2)
    rows_of_strip = rows if torch.compiler.is_compiling() else -(-STRIP_TILES // (batch * columns))
    strips = []
    for strip in tiles.split(rows_of_strip, dim=1):
        places = of_inputs @ strip.permute(4, 5, 0, 1, 2, 3).flatten(0, 1).flatten(1)
        mixed = torch.bmm(places.unflatten(1, (-1, weight.shape[1])), mixing)  # (P, T, C')
        outputs = (to_outputs @ mixed.flatten(1)).unflatten(1, (batch, -1, columns, weight.shape[0]))
        outputs = outputs.unflatten(0, (TILE, TILE)).permute(2, 3, 0, 4, 1, 5)
        strips.append(outputs.flatten(3, 4).flatten(1, 2))  # (B, rows, W, C')
    return torch.cat(strips, dim=1)[:, :height, :width].permute(0, 3, 1, 2)


def transform_of_tile(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Transform along one axis (n, m) -> that of a tile with two axes, (n * n, m * m)."""
    along_axis = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(along_axis, along_axis).to(like)
