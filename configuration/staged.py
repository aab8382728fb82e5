"""The fields of backbones in stages, from fine to coarse."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from .decoding import UnetDecodingConfig


@strict
class StagedConfig(BackboneConfigMixin, UnetDecodingConfig):
    """Fields that the configurations of our backbones share; they have `hidden_sizes`, the channels of each stage, besides.

    Besides the fields of `UnetDecodingConfig`, the decoder's and the heads':

    num_channels: bands of the image.
    patch_size: side of a patch in pixels; logits come at this stride.
    depths: blocks of each stage.
    num_heads: attention heads of each stage.
    mlp_ratio: hidden width of an MLP over its input's.
    drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
    initializer_range: standard deviation of freshly initialised linear weights.
    layer_norm_eps: epsilon of every layer norm.
    out_features, out_indices: stages whose feature maps the backbone returns, by name ("stem", "stage1", ...) or
        number; all stages by default. Stages after the last of them are not built.
    """

    width_field = "hidden_sizes"  # that a person changes for other channels
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
        self.stage_names = ["stem"] + [f"stage{index + 1}" for index in range(self.num_layers)]
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if out_features is None and out_indices is None:
            out_features = self.stage_names[1:]  # decoders take every stage
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)

    @property
    def num_layers(self) -> int:
        """Number of stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def out_stages(self) -> list[int]:
        """Numbers of the stages in `out_features`, counted from the end of the patch embedding, which is 0."""
        return [self.stage_names.index(name) for name in self.out_features]

    @property
    def num_backbone_stages(self) -> int:
        """Stages that a backbone builds: none after the last of `out_features`."""
        return max(*self.out_stages, 1)

    def drop_path_rates(self, stage: int) -> list[float]:
        """The stochastic depth of each block of a stage."""
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
        for stage, (dim, heads) in enumerate(zip(self.hidden_sizes, self.num_heads, strict=True)):
            if dim % heads:
                raise ValueError(
                    f"stage {stage + 1} has {dim} channels, which {heads} heads do not divide. "
                    f"Change {self.width_field} or num_heads."
                )

    def check_stripes(self, widths: list[int] | tuple[int, ...]) -> None:
        """Raises unless the stages with stripes have heads for both directions; width 0 is no stripe."""
        for stage, width in enumerate(widths):
            if width < 0:
                raise ValueError(f"stage {stage + 1} has stripe width {width}; 0 or more is required.")
            if width and self.num_heads[stage] % 2:
                raise ValueError(
                    f"stage {stage + 1} has {self.num_heads[stage]} heads, which two directions of stripes cannot share. "
                    "Use an even number."
                )
