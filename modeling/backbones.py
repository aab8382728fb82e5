"""The one adapter between encoders and decoders: any encoder gives feature maps (B, C_i, H/s_i, W/s_i) for any image size.

Ours, those of transformers (every AutoBackbone, and SegFormer's MiT), those of timm, and those that users register with
AutoBackbone. Images are padded right and below to what an encoder needs, and its maps cut to ceil(side / stride).

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput

from ..configuration.checked_config import choose
from .backbone_building import build_encoder
from .backbone_info import EncoderFacts, measure
from .modeling_cswin import CswinBackbone
from .modeling_glam_swin import GlamSwinBackbone
from .modeling_maformer import MaformerBackbone
from .plain_vit_pyramid import PlainVitPyramid
from .pretrained import check_images

logger = logging.getLogger(__name__)

# By `model_type`, which is the same in every copy of a configuration's class.
OWN_BACKBONES: dict[str, Callable[[PreTrainedConfig], nn.Module]] = {
    "cswin": CswinBackbone,
    "glam_swin": GlamSwinBackbone,
    "maformer": MaformerBackbone,
}
FLAT = {"keep": False, "pyramid": True}


class AnyBackbone(nn.Module):
    """An encoder in its adapter, built by `build_backbone`.

    channels, strides: of each feature map, fine to coarse; all strides are equal for a plain vision transformer.
    Attentions come from encoders of transformers and ours; `hidden_states` are those of the padded image, and for timm
    the feature maps.
    """

    def __init__(
        self, encoder: nn.Module, facts: EncoderFacts, pyramid: PlainVitPyramid | None = None
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
    ) -> BackboneOutput:
        """(B, C, H, W), optional (B, H, W) one where there is image -> feature maps (B, C_i, H/s_i, W/s_i)."""
        asks_attentions = output_attentions and "output_attentions" in self.takes
        check_images(self.encoder.config, pixel_values, pixel_mask, asks_attentions)
        options = {
            "pixel_mask": None if pixel_mask is None else self.pad(pixel_mask),
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        options = {name: options[name] for name in self.takes if options[name] is not None}
        outputs = self.encoder(self.pad(pixel_values), **options)
        return BackboneOutput(
            feature_maps=self.finished(outputs.feature_maps, *pixel_values.shape[-2:]),
            hidden_states=(outputs.hidden_states or outputs.feature_maps) if output_hidden_states else None,
            attentions=outputs.attentions if asks_attentions else None,
        )

    def pad(self, image: Tensor) -> Tensor:
        """(..., H, W) -> (..., H', W'), sides that the encoder takes, with zeros right and below."""
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
                    f"an image of {height}x{width} is larger than {new_height}x{new_width}, the only size that the encoder "
                    f"'{self.encoder.config.model_type}' takes. Cut or resize images to that, or build the encoder for "
                    "larger ones (image_size, or for timm model_kwargs={'img_size': ...})."
                )
        return F.pad(image, (0, new_width - width, 0, new_height - height))

    def padded_side(self, side: int) -> int:
        """The next larger side that the encoder takes."""
        multiple, minimum = self.facts.multiple, self.facts.minimum
        rounded = (side + multiple - 1) // multiple * multiple
        # Python's max of a free size asks which one is larger, which an exported program cannot; dynamo can, and not the other.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            return torch.sym_max(rounded, minimum)
        return max(rounded, minimum)

    def finished(self, feature_maps: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, ...]:
        """The encoder's maps of the padded image -> maps (B, C_i, H/s_i, W/s_i), fine to coarse, of the image itself."""
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
        """The encoder's own configuration."""
        return self.encoder.config

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the encoder recomputes in the backward pass; transformers sets it on all modules that have it."""
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
                "the encoder '%s' has no gradient checkpointing: it keeps its activations, and only the decoder saves memory",
                self.encoder.config.model_type,
            )


def accepted_options(encoder: nn.Module) -> tuple[str, ...]:
    """The options of `AnyBackbone.forward` that an encoder understands. timm's wrapper lists some that it refuses."""
    if encoder.config.model_type == "timm_backbone":
        return ()
    parameters = inspect.signature(encoder.forward).parameters
    names = ["pixel_mask", "output_hidden_states", "output_attentions"]
    takes_all = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in parameters.values())
    return tuple(name for name in names if name in parameters or (takes_all and name != "pixel_mask"))


def parameters_to_buffers(module: nn.Module, names: Iterable[str]) -> None:
    """Makes buffers of parameters that no feature map depends on.

    Without a gradient they would stop DistributedDataParallel; as buffers they are saved and loaded all the same.
    (`requires_grad_(False)` does not last: `from_pretrained` makes new parameters, which want a gradient.)
    """
    for name in names:
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        value = getattr(owner, last).detach()
        delattr(owner, last)
        owner.register_buffer(last, value)


def save_all_buffers(encoder: nn.Module) -> None:
    """Lets buffers that timm or a user fills while building be saved: `from_pretrained` leaves others as random memory.

    transformers fills its own again, which older timm and most users' code do not.
    """
    for module in encoder.modules():
        if not type(module).__module__.startswith("transformers."):
            module._non_persistent_buffers_set.clear()


def build_backbone(backbone_config: PreTrainedConfig, flat: str = "keep") -> AnyBackbone:
    """The backbone that any configuration of an encoder describes, with random weights.

    flat: for plain vision transformers, whose maps have one stride: "keep" leaves them so, "pyramid" adds layers that
        make strides 4, 8, 16, 32 of them.
    """
    origin = "ours" if backbone_config.model_type in OWN_BACKBONES else "foreign"
    return choose("backbones that are", origin, BACKBONE_BUILDERS)(backbone_config, flat)


def own_backbone(backbone_config: PreTrainedConfig, flat: str) -> AnyBackbone:
    """One of ours in its adapter."""
    build = choose("backbone", backbone_config.model_type, OWN_BACKBONES)
    return adapted(build(backbone_config), flat)


def foreign_backbone(backbone_config: PreTrainedConfig, flat: str) -> AnyBackbone:
    """An encoder of transformers, timm or a user in its adapter."""
    facts = measure(backbone_config)
    return adapted(build_encoder(backbone_config, facts.out_indices), flat, facts)


BACKBONE_BUILDERS: dict[str, Callable[[PreTrainedConfig, str], AnyBackbone]] = {
    "ours": own_backbone,
    "foreign": foreign_backbone,
}


def adapted(encoder: nn.Module, flat: str, facts: EncoderFacts | None = None) -> AnyBackbone:
    """The encoder in its adapter; without facts it is one of ours."""
    wants_pyramid = choose("way to use flat maps", flat, FLAT)
    facts = facts or own_facts(encoder)
    pyramid = None
    if wants_pyramid and facts.is_flat:
        pyramid = PlainVitPyramid(facts.channels, facts.strides[0], facts.pyramid_strides)
    return AnyBackbone(encoder, facts, pyramid)


def own_facts(encoder: nn.Module) -> EncoderFacts:
    """Ours take any size, and build no parameter that they do not use."""
    return EncoderFacts(tuple(encoder.out_indices), tuple(encoder.channels), tuple(encoder.strides))


__all__ = ["AnyBackbone", "build_backbone"]
