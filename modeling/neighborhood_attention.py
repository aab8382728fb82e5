"""Neighborhood attention in plain PyTorch (Hassani et al., NAT and DiNAT, 2022), for DiNAT of transformers.

Each query attends to the `kernel_size`² nearest positions among those that are a multiple of `dilation` away; at the
border the window is shifted inwards. transformers calls functions of the package natten that natten dropped in
version 0.20. Here keys and values are gathered: exact, but the memory grows with kernel_size² per position.

Legend: B batch, C channels, H, W height and width, k side of the window, n heads, d head dimension.
"""

import torch
from torch import Tensor, nn
from transformers import DinatConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput


def axis_neighbors(
    length: int, kernel_size: int, dilation: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Neighbors of each position along one axis, and their offsets in steps of the dilation; both (length, k).

    Args:
        length: Number of positions, at least kernel_size * dilation.
        kernel_size: Number of neighbors.
        dilation: Distance between neighbors.
        device: Device of the result.
    """
    position = torch.arange(length, device=device)
    group, index = position % dilation, position // dilation
    members = (length - 1 - group) // dilation + 1  # positions with the same remainder
    first = torch.minimum((index - kernel_size // 2).clamp(min=0), members - kernel_size)
    steps = first[:, None] + torch.arange(kernel_size, device=device)
    return group[:, None] + dilation * steps, steps - index[:, None]


class NeighborhoodAttention(nn.Module):
    """Attention of each position to its k x k neighbors, with the parameters of transformers' module."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, dilation: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.dropout = nn.Dropout(0.0)

    def forward(self, features: Tensor, output_attentions: bool | None = False) -> tuple[Tensor, ...]:
        """(B, H, W, C) -> (B, H, W, C) and, on request, probabilities (B, n, H, W, k * k)."""
        query, key, value = (
            project(features).unflatten(-1, (self.num_heads, -1))
            for project in (self.query, self.key, self.value)
        )
        (rows, down), (columns, right) = (
            axis_neighbors(length, self.kernel_size, self.dilation, features.device)
            for length in features.shape[1:3]
        )
        key, value = (tokens[:, rows][:, :, :, columns] for tokens in (key, value))  # (B, H, k, W, k, n, d)
        scores = torch.einsum("bhwnd,bhiwjnd->bnhwij", query * query.shape[-1] ** -0.5, key)
        center = self.kernel_size - 1
        scores = scores + self.rpb[:, down[:, None, :, None] + center, right[None, :, None, :] + center]
        probabilities = self.dropout(scores.flatten(-2).softmax(-1))
        mixed = torch.einsum(
            "bnhwij,bhiwjnd->bhwnd", probabilities.unflatten(-1, (self.kernel_size,) * 2), value
        )
        return (mixed.flatten(-2), probabilities) if output_attentions else (mixed.flatten(-2),)


class DinatEncoderBackbone(BackboneMixin, PreTrainedModel):
    """transformers' DinatBackbone with this module's attention: the same parameters under the same names.

    Args:
        config: Configuration of the encoder; `out_features` selects the stages.
    """

    config_class = DinatConfig
    base_model_prefix = "dinat"
    main_input_name = "pixel_values"

    def __init__(self, config: DinatConfig) -> None:
        super().__init__(config)
        # Not at the top: with natten 0.20 or newer this module cannot be imported.
        from transformers.models.dinat.modeling_dinat import DinatEmbeddings, DinatEncoder

        self.embeddings = DinatEmbeddings(config)
        self.encoder = DinatEncoder(config)
        for level, num_heads in zip(self.encoder.levels, config.num_heads, strict=True):
            for layer in level.layers:
                layer.attention.self = NeighborhoodAttention(
                    level.dim, num_heads, layer.kernel_size, layer.dilation, config.qkv_bias
                )
                layer.attention.self.dropout.p = config.attention_probs_dropout_prob
        self.num_features = [config.embed_dim, *(level.dim for level in self.encoder.levels)]
        self.hidden_states_norms = nn.ModuleDict(
            {
                name: nn.LayerNorm(channels)
                for name, channels in zip(self.out_features, self.channels, strict=True)
            }
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NeighborhoodAttention):
            init.zeros_(module.rpb)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """(B, C, H, W) -> feature maps (B, C_i, H / s_i, W / s_i) of the selected stages, fine to coarse."""
        outputs = self.encoder(
            self.embeddings(pixel_values),
            output_attentions=output_attentions,
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
        maps = dict(zip(self.stage_names, outputs.hidden_states, strict=True))
        return BackboneOutput(
            feature_maps=tuple(
                self.hidden_states_norms[name](maps[name]).movedim(-1, 1) for name in self.out_features
            ),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


__all__ = ["DinatEncoderBackbone", "NeighborhoodAttention"]
