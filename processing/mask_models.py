"""Mask-classification models of transformers (EoMT, Mask2Former, MaskFormer, OneFormer) as semantic segmenters.

Such a model gives each query class logits and a mask. The score of a class at a pixel is the sum over queries of
class probability, without "no object", times mask probability, at the size at which transformers' own
`post_process_semantic_segmentation` computes it. Scores are not logits: windows, scales and mirrored views are
averaged as they are, as the authors do, and divided by their sum they are class probabilities.

Legend: B batch, C channels, H, W pixels, Q queries, K classes, h, w cells of the scores.
"""

import re
from itertools import product
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

# The size that masks are resized to before their sigmoid, by model type: None is their own, "image" that of the image.
MASK_SIZES = {
    "eomt": "image",
    "eomt_dinov3": "image",
    "mask2former": (384, 384),
    "maskformer": None,
    "oneformer": None,
}
FIXED_SIZE = {"eomt", "eomt_dinov3"}  # take square images of config.image_size only
PROMPTED = re.compile(r"(sam|edgetam)\d*(_.*)?")
SEMANTIC_TASK = "the task is semantic"
CLIP_VOCABULARY = 49408
CLIP_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)  # SEMANTIC_TASK in CLIP's vocabulary


class MaskSegmenter(nn.Module):
    """A mask-classification model of transformers as a segmenter, whose `logits` are scores of the classes.

    `Inference`, `segment_raster` and the commands make it of such a model themselves. It takes images of any size. EoMT,
    which itself takes one size, gets tiles of that size, which overlap as those of its image processor, or smaller
    images padded; their scores are averaged.

    Args:
        model: An EoMT, EoMT-DINOv3, Mask2Former, MaskFormer or OneFormer of transformers.
        processor: Its processor; of a OneFormer, the tokenizer in it writes the task. Default: None, with which
            the task is in CLIP's tokens, as of all published OneFormers.

    Attributes:
        gives_scores: True. `logits` are not negative; divided by their sum over the classes they are probabilities.
        tile: Side in pixels of the images that the model itself takes; None if any size.

    Raises:
        ValueError: If the model is of another type, or a OneFormer that has its own vocabulary and no tokenizer.
    """

    gives_scores = True

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        super().__init__()
        if model.config.model_type not in MASK_SIZES:
            raise ValueError(
                f"{type(model).__name__} does not classify masks. Pass an EoMT, Mask2Former, MaskFormer or OneFormer."
            )
        self.model, self.config = model, model.config
        kind = self.config.model_type
        self.tile: int | None = self.config.image_size if kind in FIXED_SIZE else None
        self.task = None
        if kind == "oneformer":
            check_projections(model)
            self.task = task_tokens(self.config, getattr(processor, "tokenizer", None))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return self.model.dtype

    @property
    def crop_size(self) -> int | None:
        """The side of windows of large images, where none is chosen; None if the model has no size of its own."""
        return self.tile

    @property
    def logits_stride(self) -> int | None:
        """Pixels of a cell of the scores, if it is the same for all images."""
        return None if self.tile is None else 1

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """(B, C, H, W) -> `logits` (B, K, h, w), the scores."""
        whole = self.scores if self.tile is None else self.scores_of_tiles
        return SemanticSegmenterOutput(logits=whole(pixel_values))

    def scores(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) of a size that the model takes -> (B, K, h, w)."""
        task = {}
        if self.task is not None:
            task = {"task_inputs": self.task.to(pixel_values.device).expand(len(pixel_values), -1)}
        outputs = self.model(pixel_values=pixel_values, **task)
        size = MASK_SIZES[self.config.model_type]
        size = tuple(pixel_values.shape[-2:]) if size == "image" else size
        return class_scores(outputs.class_queries_logits, outputs.masks_queries_logits, size)

    def scores_of_tiles(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) of any size -> (B, K, H, W): scores of square tiles, averaged where they overlap."""
        height, width = pixel_values.shape[-2:]
        below, right = (max(0, self.tile - side) for side in (height, width))
        pixels = F.pad(pixel_values, (0, right, 0, below))  # with the mean
        starts = [tile_starts(side, self.tile) for side in pixels.shape[-2:]]
        total = count = 0
        for top, left in product(*starts):
            place = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            scores = self.scores(pixels[place])
            if len(starts[0]) == len(starts[1]) == 1:
                return scores[..., :height, :width]
            if not torch.is_tensor(total):
                total = scores.new_zeros(*scores.shape[:2], *pixels.shape[-2:])
                count = scores.new_zeros(pixels.shape[-2:])
            total[place] += scores
            count[place] += 1
        return (total / count)[..., :height, :width]


def class_scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Class logits (B, Q, K + 1), mask logits (B, Q, h, w) -> scores (B, K, *size) float32; `size` is (h, w) by default."""
    mask_logits = mask_logits.float()
    if size is not None:
        mask_logits = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    shares = class_logits.float().softmax(-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", shares, mask_logits.sigmoid())


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of as few, evenly spaced tiles as cover `length`, as EoMT's image processor places them."""
    number = ceil(length / tile)
    return [index * (length - tile) // max(1, number - 1) for index in range(number)]


def task_tokens(config: Any, tokenizer: Any = None) -> Tensor:
    """(1, N): the task "semantic" for a OneFormer, 0 after its end. Raises ValueError if it cannot be written."""
    length = config.task_seq_len
    if tokenizer is not None:
        written = tokenizer(SEMANTIC_TASK, padding="max_length", max_length=length, truncation=True)
        return torch.tensor([written["input_ids"]]) * torch.tensor([written["attention_mask"]])
    if config.text_encoder_vocab_size != CLIP_VOCABULARY:
        raise ValueError(
            f"this OneFormer has a vocabulary of {config.text_encoder_vocab_size} tokens and no tokenizer to write its task "
            "in. Pass its OneFormerProcessor, or save its tokenizer in its folder."
        )
    return torch.tensor([[*CLIP_TASK, *[0] * length][:length]])


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Noise of a size that a mask-classification model takes as it is, the same in every call; of a OneFormer also its task."""
    config, random = model.config, torch.Generator().manual_seed(0)
    side = config.image_size if config.model_type in FIXED_SIZE else 96
    inputs = {"pixel_values": torch.randn(1, 3, side, side, generator=random)}
    if config.model_type == "oneformer":
        inputs["task_inputs"] = torch.randint(CLIP_VOCABULARY, (1, config.task_seq_len), generator=random)
    return inputs


def check_projections(model: nn.Module) -> None:
    """Raises ValueError if a OneFormer has layers that transformers neither saves nor loads: its results are random."""
    plain = [layer for module in model.modules() for layer in getattr(module, "input_projections", ())]
    if any(
        weights.is_meta for layer in plain if isinstance(layer, nn.Module) for weights in layer.parameters()
    ):
        raise ValueError(
            "this OneFormer has input projections, which transformers does not save, so its results would be random. Use one "
            "whose config.json has equal conv_dim and hidden_dim and enforce_input_proj false, as the published ones."
        )


def image_part(processor: Any) -> Any:
    """The image processor, also of one that has a tokenizer too."""
    return getattr(processor, "image_processor", processor)


def undivided(processor: Any) -> dict[str, bool]:
    """Options with which an image processor leaves images in one piece: EoMT's splits or pads, as `MaskSegmenter` does."""
    return {"do_split_image": False, "do_pad": False} if hasattr(processor, "do_split_image") else {}


def is_mask_model(config: Any) -> bool:
    """Whether a configuration is that of a model that `MaskSegmenter` takes."""
    return getattr(config, "model_type", None) in MASK_SIZES


def gives_scores(model: nn.Module) -> bool:
    """Whether what `as_segmenter` makes of a model gives scores in proportion to class probabilities, not logits."""
    return getattr(model, "gives_scores", False) or is_mask_model(model.config)


def as_segmenter(model: nn.Module, processor: Any = None) -> nn.Module:
    """Returns the model, or, of a mask-classification model, its `MaskSegmenter`.

    Raises ValueError for a model that segments what a prompt points at, as SAM.
    """
    check_has_classes(model.config, f"the {type(model).__name__}")
    if isinstance(model, MaskSegmenter) or not is_mask_model(model.config):
        return model
    return MaskSegmenter(model, processor)


def check_has_classes(config: Any, name: str) -> None:
    """Raises ValueError if a model segments what a prompt points at; `name` is what it is called."""
    if PROMPTED.fullmatch(str(getattr(config, "model_type", ""))):
        raise ValueError(
            f"{name} is a model of type '{config.model_type}', which segments what prompts point at and has no classes; use a "
            "semantic segmenter, such as SegFormer, EoMT or one of ours."
        )


__all__ = ["MaskSegmenter"]
