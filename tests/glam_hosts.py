"""Tiny windowed encoders of transformers and timm, for tests of GLAM in them."""

from collections.abc import Callable

from timm.models import is_model, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.nest import Nest
from transformers import PreTrainedConfig, SwinConfig, Swinv2Config, TimmBackboneConfig

NEST = "nest_of_tests"


def nest_of_tests(pretrained: bool = False, **options) -> Nest:
    sizes = {"embed_dims": (8, 16), "depths": (2, 2), "num_heads": (1, 2), "num_levels": 2}
    return build_model_with_cfg(
        Nest, NEST, pretrained, feature_cfg={"flatten_sequential": True}, **{**sizes, **options}
    )


def timm_encoder(name: str, out_indices: list[int], **options) -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone=name, out_indices=out_indices, model_kwargs=options)


def swin(**options) -> SwinConfig:
    return SwinConfig(**sizes(options))


def swinv2(**options) -> Swinv2Config:
    return Swinv2Config(**sizes(options))


def sizes(options: dict) -> dict:
    small = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4, "image_size": 64}
    return {**small, "out_indices": [1, 2], "drop_path_rate": 0.0, **options}


def twins() -> TimmBackboneConfig:
    sizes = {"embed_dims": (8, 16), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    return timm_encoder("twins_svt_small", [0, 1], depths=(3, 3), wss=(4, 4), **sizes)


def maxvit() -> TimmBackboneConfig:
    windows = {"transformer_window_size": (4, 4), "transformer_grid_size": (4, 4), "img_size": 64}
    sizes = {"embed_dim": (32, 32), "depths": (2, 2), "block_type": ("M", "M"), "stem_width": 8}
    return timm_encoder("maxvit_tiny_tf_224", [1, 2], **sizes, **windows)


def nest() -> TimmBackboneConfig:
    if not is_model(NEST):
        register_model(nest_of_tests)
    return timm_encoder(NEST, [0, 1], img_size=64, drop_path_rate=0.0)


HOSTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "swin": swin,
    "swinv2": swinv2,
    "twins": twins,
    "maxvit": maxvit,
    "nest": nest,
}
