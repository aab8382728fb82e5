"""Masked pretraining of CASWiT (Carreaud et al., arXiv 2601.11310): masked pixels of a sharp crop are predicted from
the rest of it and from its context, in which the footprint of the crop is masked.

Built from the abstract; no reference numbers exist. The abstract names 75 % masked crop tokens, the masked footprint, a
small decoder, and joint training of both encoders; units, vectors, decoder and loss are SimMIM's (Xie et al.,
CVPR 2022).

Legend: B batch, H, W height and width of the crop, h, w grid of patches, C channels, N tokens.
"""

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedImageModelingOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_caswit import CaswitConfig
from .crop_pairs import contexts_of, joined_tiles, tiles_of
from .masked_images import MaskVector, masked_footprint, masked_l1
from .modeling_caswit import CaswitPreTrainedModel, build_caswit_encoder
from .modeling_staged import StagedForMaskedImageModeling, StagedModel, channels_first, pyramid
from .pretrained import as_weights, check_images
from .two_scale import check_context, inside_image


class CaswitModel(StagedModel, CaswitPreTrainedModel):
    """Both encoders with a final layer norm, and vectors for masked patches of crop and context."""

    def __init__(self, config: CaswitConfig) -> None:
        last = config.num_layers - 1
        fused = range(config.num_layers) if config.fusion_feeds_next_stage else [last]  # whose result is used
        super().__init__(config, build_caswit_encoder(config, config.num_layers, fused), use_mask_vector=True)
        self.context_mask_vector = MaskVector(config.hidden_sizes[0])
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor,
        bool_masked_pos: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Twice (B, C, H, W), (B, h, w), true for masked patches -> `last_hidden_state` (B, N, C)."""
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, output_attentions=output_attentions)
        size, patch, ratio = tuple(pixel_values.shape[2:]), self.config.patch_size, self.config.context_ratio
        footprint = masked_footprint(size, patch, ratio, pixel_values.device)[None]
        context = self.encoder.encode_context(
            as_weights(self, context_values), self.context_mask_vector.on_patches(footprint)
        )
        encoded = self.encoder(
            as_weights(self, pixel_values),
            self.encoder.fused_features(context),
            self.masking(bool_masked_pos),
        )
        features = self.norm(encoded.outputs[-1]).flatten(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
        )


class CaswitForMaskedImageModeling(StagedForMaskedImageModeling, CaswitPreTrainedModel):
    """CASWiT encoders that learn from images alone, by predicting masked pixels of the local crop (SimMIM).

    In the context, exactly the footprint of the crop is masked, by a vector of its own. Built from the abstract; no
    reference numbers exist.

    Args:
        config: Configuration of the encoders; those of decoder and loss are kept for the segmenter.
    """

    def __init__(self, config: CaswitConfig) -> None:
        super().__init__(config, CaswitModel(config))

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedImageModelingOutput:
        """(B, C, H, W) -> reconstruction (B, C, H, W), and the loss: mean absolute error of masked pixels.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor: local crops if there are
                `context_values`, else whole images, which are cut into tiles of `config.crop_size`.
            context_values: (B, C, H, W), the context of each local crop, as in the segmenter.
            pixel_mask: (B, H, W), 1 for image, 0 for padding, which counts as outside the image; None without
                padding.
            bool_masked_pos: (B, N) or (B, h, w) patches of the first stage, true for patches to mask; with whole
                images, those of the tiles, row by row. None draws 75 % of the units of 32 x 32 pixels of each crop.
            generator: Source of that draw; PyTorch's own by default.
            output_hidden_states: Whether to return the feature maps of every stage; of tiles with whole images.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention implementation.
        """
        check_images(self.config, pixel_values, pixel_mask)
        check_context(pixel_values, context_values, None, None)
        images, side, size = (
            inside_image(pixel_values, pixel_mask),
            self.config.crop_size,
            pixel_values.shape[2:],
        )
        crops, context, is_image = images, context_values, pixel_mask
        if context_values is None:
            is_image = torch.ones_like(images[:, 0]) if pixel_mask is None else pixel_mask
            is_image = tiles_of(is_image[:, None], side)[:, 0]
            crops, context = tiles_of(images, side), contexts_of(images, side, self.config.context_ratio)
        masked = self.masked_patches(crops, bool_masked_pos, generator)
        outputs = self.backbone(
            crops, context, masked, output_hidden_states, output_attentions, return_dict=True
        )
        found = self.reconstructed(outputs.last_hidden_state, crops)
        return MaskedImageModelingOutput(
            loss=masked_l1(found, crops, self.masked_pixels(masked, crops, is_image)),
            reconstruction=found if context_values is not None else joined_tiles(found, tuple(size), side),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["CaswitForMaskedImageModeling"]
