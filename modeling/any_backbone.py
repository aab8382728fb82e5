"""The adapter between encoders and decoders: any encoder, any image size, maps (B, C_i, H/s_i, W/s_i).

Images are padded on the right and bottom to a size the encoder accepts, and its feature maps are cropped to
ceil(side / stride).

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

import inspect
import logging
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput

from ..configuration.checked_config import choose
from .backbone_building import build_encoder
from .backbone_info import FeatureInfo, measure
from .plain_vit_pyramid import PlainVitPyramid
from .pretrained import as_weights, check_images

logger = logging.getLogger(__name__)

FLAT = {"keep": False, "pyramid": True}


class AnyBackbone(nn.Module):
    """An encoder with a uniform interface, built by `build_backbone`.

    Attentions are available from our encoders and those of transformers. `hidden_states` are those of the
    padded image; for timm they are the feature maps.

    Attributes:
        channels: Channels of each feature map, fine to coarse.
        strides: Stride of each feature map in pixels; all equal for a plain vision transformer without
            pyramid.
    """

    def __init__(
        self, encoder: nn.Module, facts: FeatureInfo, pyramid: PlainVitPyramid | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.facts = facts
        self.pyramid = pyramid
        self.channels = tuple(facts.channels if pyramid is None else pyramid.channels)
        self.strides = tuple(facts.strides if pyramid is None else pyramid.strides)
        self.takes = accepted_options(encoder)
        parameters_to_buffers(encoder, facts.unused)
        save_all_buffers(encoder)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool = True,  # noqa: ARG002 - as transformers' backbones; the result is always an object
    ) -> BackboneOutput:
        """(B, C, H, W) -> feature maps (B, C_i, H/s_i, W/s_i), fine to coarse.

        Args:
            pixel_values: Images (B, C, H, W) of any size.
            pixel_mask: Optional padding mask (B, H, W), 1 for image and 0 for padding.
            output_hidden_states: Whether to return the encoder's hidden states.
            output_attentions: Whether to return attention probabilities, which need eager attention.
        """
        asks_attentions = output_attentions and "output_attentions" in self.takes
        check_images(self.encoder.config, pixel_values, pixel_mask, asks_attentions)
        options = {
            "pixel_mask": None if pixel_mask is None else self.pad(pixel_mask),
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        options = {name: options[name] for name in self.takes if options[name] is not None}
        outputs = self.encoder(as_weights(self.encoder, self.pad(pixel_values)), **options)
        return BackboneOutput(
            feature_maps=self.finished(outputs.feature_maps, *pixel_values.shape[-2:]),
            hidden_states=(outputs.hidden_states or outputs.feature_maps) if output_hidden_states else None,
            attentions=outputs.attentions if asks_attentions else None,
        )

    def pad(self, image: Tensor) -> Tensor:
        """(..., H, W) -> (..., H', W'): zero-padded on the right and bottom to an accepted size."""
        facts = self.facts
        if facts.multiple == facts.minimum == 1 and facts.fixed_size is None:
            return image
        height, width = image.shape[-2:]
        if facts.fixed_size is None:
            new_height, new_width = self.padded_side(height), self.padded_side(width)
        else:
            new_height, new_width = facts.fixed_size
            if height > new_height or width > new_width:
                raise ValueError(
                    f"an image of {height}x{width} is larger than {new_height}x{new_width}, the only size that "
                    f"the encoder '{self.encoder.config.model_type}' accepts. Crop or resize images to it, or build "
                    "the encoder for larger images (image_size, or for timm model_kwargs={'img_size': ...})."
                )
        return F.pad(image, (0, new_width - width, 0, new_height - height))

    def padded_side(self, side: int) -> int:
        """The smallest side, at least this one, that the encoder accepts."""
        multiple, minimum = self.facts.multiple, self.facts.minimum
        rounded = (side + multiple - 1) // multiple * multiple
        # torch.export cannot evaluate Python's max of a symbolic size; dynamo can, but not torch.sym_max.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            return torch.sym_max(rounded, minimum)
        return max(rounded, minimum)

    def finished(self, feature_maps: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, ...]:
        """Maps of the padded image -> (B, C_i, H/s_i, W/s_i), fine to coarse, cropped to the image."""
        if self.facts.channels_last:
            feature_maps = [feature_map.movedim(-1, 1) for feature_map in feature_maps]
        if self.pyramid is not None:
            feature_maps = self.pyramid(feature_maps)
        return tuple(
            feature_map[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
            for feature_map, stride in zip(feature_maps, self.strides, strict=True)
        )

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the encoder."""
        return self.encoder.config

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass; set by transformers."""
        return getattr(self, "_gradient_checkpointing", False)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self._gradient_checkpointing = enable
        timm_model = getattr(self.encoder, "_backbone", None)
        if hasattr(timm_model, "set_grad_checkpointing"):
            timm_model.set_grad_checkpointing(enable)
        elif enable and not any(
            hasattr(module, "gradient_checkpointing") for module in self.encoder.modules()
        ):
            logger.warning(
                "the encoder '%s' has no gradient checkpointing and keeps its activations; only the decoder saves memory",
                self.encoder.config.model_type,
            )


def accepted_options(encoder: nn.Module) -> tuple[str, ...]:
    """The options of `AnyBackbone.forward` that an encoder accepts; for timm's wrapper none."""
    if encoder.config.model_type == "timm_backbone":
        return ()
    parameters = inspect.signature(encoder.forward).parameters
    names = ["pixel_mask", "output_hidden_states", "output_attentions"]
    takes_all = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in parameters.values())
    return tuple(name for name in names if name in parameters or (takes_all and name != "pixel_mask"))


def parameters_to_buffers(module: nn.Module, names: Iterable[str]) -> None:
    """Turns parameters that no feature map depends on into buffers.

    As parameters without a gradient they would make DistributedDataParallel fail; as buffers they are still
    saved and loaded. (`requires_grad_(False)` does not last: `from_pretrained` creates new parameters that
    require a gradient.)
    """
    for name in names:
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        value = getattr(owner, last).detach()
        delattr(owner, last)
        owner.register_buffer(last, value)


def save_all_buffers(encoder: nn.Module) -> None:
    """Makes all buffers of timm's and users' modules persistent.

    `from_pretrained` leaves non-persistent buffers uninitialized. transformers' own modules fill theirs
    again; older versions of timm and most user code do not.
    """
    for module in encoder.modules():
        if not type(module).__module__.startswith("transformers."):
            module._non_persistent_buffers_set.clear()


def foreign_backbone(backbone_config: PreTrainedConfig, flat: str) -> AnyBackbone:
    """An encoder of transformers, timm or a user in the adapter."""
    facts = measure(backbone_config)
    return adapted(build_encoder(backbone_config, facts.out_indices), flat, facts)


def adapted(encoder: nn.Module, flat: str, facts: FeatureInfo | None = None) -> AnyBackbone:
    """Wraps an encoder in the adapter; without `facts` it must be one of ours."""
    wants_pyramid = choose("way to use flat maps", flat, FLAT)
    facts = facts or own_feature_info(encoder)
    pyramid = None
    if wants_pyramid and facts.is_flat:
        pyramid = PlainVitPyramid(facts.channels, facts.strides[0], facts.pyramid_strides)
    return AnyBackbone(encoder, facts, pyramid)


def own_feature_info(encoder: nn.Module) -> FeatureInfo:
    """The facts of one of our backbones: they accept any size and have no unused parameters."""
    return FeatureInfo(tuple(encoder.out_indices), tuple(encoder.channels), tuple(encoder.strides))


__all__ = ["AnyBackbone", "adapted", "foreign_backbone"]
