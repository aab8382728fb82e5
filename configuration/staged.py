"""The fields of hierarchical backbones, whose stages go from fine to coarse."""

from math import prod
from typing import Any

from transformers.backbone_utils import BackboneConfigMixin

from .axes import StageStrides, along_axes
from .decoding import SINGLE_MAP_DECODERS, UnetDecodingConfig
from .field_rules import checked


class StageRules:
    """Rules of configurations with `depths`, `num_heads` and `hidden_sizes` for each stage."""

    width_field = "hidden_sizes"  # the field that error messages name for the number of channels

    @property
    def num_layers(self) -> int:
        """Number of stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    def drop_path_rates(self, stage: int) -> list[float]:
        """Stochastic depth rate of each block of a stage."""
        first, blocks = sum(self.depths[:stage]), sum(self.depths)
        return [
            self.drop_path_rate * (first + index) / max(blocks - 1, 1) for index in range(self.depths[stage])
        ]

    def validate_stages(self) -> None:
        fields = self.__dataclass_fields__.keys() & {"hidden_sizes", "depths", "num_heads"}
        lengths = {name: len(getattr(self, name)) for name in sorted(fields)}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"{found} stages. Give one entry per stage.")
        if any(int(dim * self.mlp_ratio) < 1 for dim in self.hidden_sizes):
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}, which leaves an MLP without channels. Increase it."
            )
        for stage, (dim, heads) in enumerate(zip(self.hidden_sizes, self.num_heads, strict=True)):
            if dim % heads:
                raise ValueError(
                    f"stage {stage + 1} has {dim} channels, which {heads} heads do not divide. "
                    f"Change {self.width_field} or num_heads."
                )

    def encoder_weights(self) -> float:
        """Returns roughly the number of weights of the encoder."""
        per_block = 4 + 2 * self.mlp_ratio
        blocks = sum(
            depth * per_block * dim**2 for dim, depth in zip(self.hidden_sizes, self.depths, strict=True)
        )
        return blocks + self.num_channels * prod(along_axes(self.patch_size, 2)) * self.hidden_sizes[0]


class OutFeatures:
    """Names of the stages, and the choice of those whose feature maps a backbone returns."""

    def settle_out_features(self, options: dict[str, Any], last_only: bool = False) -> dict[str, Any]:
        """Sets `stage_names` and `out_features`; returns the options without those of the choice.

        By default all stages are returned, or the last one only.
        """
        self.stage_names = ["stem"] + [f"stage{index + 1}" for index in range(self.num_layers)]
        options = {name: value for name, value in options.items() if name != "stage_names"}  # of a file
        out_features, out_indices = options.pop("out_features", None), options.pop("out_indices", None)
        if out_features is None and out_indices is None:
            out_features = self.stage_names[-1 if last_only else 1 :]
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        return options

    @property
    def out_stages(self) -> list[int]:
        """Indices of the stages in `out_features`; 0 is the patch embedding ("stem")."""
        return [self.stage_names.index(name) for name in self.out_features]

    @property
    def num_backbone_stages(self) -> int:
        """Number of stages that a backbone builds: none after the last of `out_features`."""
        return max(*self.out_stages, 1)


@checked
class StagedConfig(StageStrides, OutFeatures, StageRules, BackboneConfigMixin, UnetDecodingConfig):
    """Fields shared by the configurations of our backbones, which also have `hidden_sizes` for each stage.

    Besides the fields of `UnetDecodingConfig`:

    num_channels: Channels of the image.
    patch_size: Side of a patch in pixels, and the stride of the finest feature map.
    depths: Number of blocks of each stage.
    num_heads: Attention heads of each stage.
    mlp_ratio: Hidden channels of an MLP over its input channels.
    drop_path_rate: Stochastic depth rate of the last block; it increases linearly from 0 at the first.
    initializer_range: Standard deviation of newly initialized linear weights.
    layer_norm_eps: Epsilon of all layer norms.
    out_features, out_indices: Stages whose feature maps the backbone returns, by name ("stem", "stage1", ...)
        or index; all stages by default. Stages after the last of these are not built.
    """

    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    num_channels: int = 3
    patch_size: int = 4
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.1
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-6
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = self.settle_out_features(kwargs, last_only=self.decoder in SINGLE_MAP_DECODERS)
        super().__post_init__(**kwargs)

    def check_stripes(self, widths: list[int] | tuple[int, ...]) -> None:
        """Raises ValueError for an odd number of heads in a stage with stripes."""
        for stage, width in enumerate(widths):
            if width and self.num_heads[stage] % 2:
                raise ValueError(
                    f"stage {stage + 1} has {self.num_heads[stage]} heads, which two directions of stripes cannot "
                    "share. Use an even number."
                )
