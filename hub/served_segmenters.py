"""Segmenters with one input and one output, as files for other runtimes hold them.

Legend: B batch, C channels, K classes, H, W pixels, h, w cells of the logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..modeling.input_channels import channels_of
from .served_processing import PixelArithmetic, normalized_alone

ROUNDING = 1e-4  # of normalized values


class ServedSegmenter(nn.Module):
    """What both kinds share.

    Args:
        model: The segmenter.
        processor: Its image processor.
    """

    input_name: str
    output_name: str
    free_axes: tuple[int, int, int]  # batch, height and width of the input

    def __init__(self, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
        super().__init__()
        self.model = model
        self.channels = channels_of(model.config)
        self.arithmetic = PixelArithmetic.of(processor, self.channels)

    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, h, w)."""
        return self.model(pixel_values=pixel_values).logits

    def signature(self) -> str:
        """Returns names, shapes and types of input and output, for people."""
        raise NotImplementedError

    def images(self, count: int, height: int, width: int) -> Tensor:
        """Returns an input of noise, the same in every call."""
        raise NotImplementedError

    def difference(self, images: Tensor, result: Tensor) -> float:
        """Returns how far a result is from that of this module, as a share of the range of its logits."""
        raise NotImplementedError


class ServedLogits(ServedSegmenter):
    """From what the image processor returns to logits."""

    input_name, output_name, free_axes = "pixel_values", "logits", (0, 2, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, h, w)."""
        return self.logits(pixel_values)

    def signature(self) -> str:
        labels = self.model.config.num_labels
        stride = getattr(self.model.config, "logits_stride", None)  # transformers' own have none
        return (
            f"pixel_values (batch, {self.channels}, height, width) float32 -> logits (batch, {labels}, rows, columns) float32"
            + (f" of stride {stride}" if stride else "")
        )

    def images(self, count: int, height: int, width: int) -> Tensor:
        """-> (B, C, H, W) float32, the same in every call."""
        return torch.randn(count, self.channels, height, width, generator=torch.Generator().manual_seed(0))

    def difference(self, images: Tensor, result: Tensor) -> float:
        """(B, C, H, W), (B, K, h, w) -> the largest difference of a logit."""
        logits = self(images)
        if logits.shape != result.shape:
            return float("inf")
        return float((logits - result).abs().max() / (logits.max() - logits.min()))


class ServedIds(ServedSegmenter):
    """From images as bytes to class ids: normalization, logits at the size of the image, and the largest of them.

    Raises ValueError if the processor does something else to pixels.
    """

    input_name, output_name, free_axes = "images", "ids", (0, 1, 2)

    def __init__(self, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
        super().__init__(model, processor)
        mean, std = self.arithmetic.image_mean, self.arithmetic.image_std
        self.register_buffer("mean", torch.tensor(mean) / self.arithmetic.rescale_factor)
        self.register_buffer("std", torch.tensor(std) / self.arithmetic.rescale_factor)
        self.check(processor)

    def check(self, processor: BaseImageProcessor) -> None:
        """Raises ValueError unless a processor, apart from resizing and cropping, makes the same of an image."""
        image = self.images(1, 8, 8)
        expected, result = normalized_alone(processor, image[0].numpy()), self.normalized(image)
        if expected.shape != result.shape or not torch.allclose(expected.float(), result, atol=ROUNDING):
            raise ValueError(
                f"what {type(processor).__name__} does to pixels cannot be inside a file. Leave out --with-processing "
                "(with_processing=True in Python), and process images before."
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, H, W) int32."""
        return self.scores(images).argmax(1).int()

    def scores(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, K, H, W)."""
        logits = self.logits(self.normalized(images))
        return F.interpolate(logits, size=images.shape[1:3], mode="bilinear", align_corners=False)

    def normalized(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W)."""
        order = self.arithmetic.channel_order
        levels = images if order == sorted(order) else images[..., order]
        return ((levels.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def signature(self) -> str:
        return f"images (batch, height, width, {self.channels}) uint8 -> ids (batch, height, width) int32"

    def images(self, count: int, height: int, width: int) -> Tensor:
        """-> (B, H, W, C) uint8, the same in every call."""
        size = (count, height, width, self.channels)
        return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def difference(self, images: Tensor, result: Tensor) -> float:
        """(B, H, W, C), (B, H, W) -> by how much a chosen class falls short of the best one."""
        scores = self.scores(images)
        if scores[:, 0].shape != result.shape:
            return float("inf")
        chosen = scores.gather(1, result[:, None].long())
        return float((scores.amax(1, keepdim=True) - chosen).max() / (scores.max() - scores.min()))
