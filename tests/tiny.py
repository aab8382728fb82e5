"""One tiny configuration of every public segmenter: the contract suite, the Hub tests and the scripts' tests run on them."""

from collections.abc import Callable

import glam_hosts
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from contextseg import (
    CaswitConfig,
    CaswitForSemanticSegmentation,
    CswinConfig,
    CswinForSemanticSegmentation,
    GlamConfig,
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    MaformerConfig,
    MaformerForSemanticSegmentation,
    NnFormerConfig,
    NnFormerForSemanticSegmentation,
    RelayConfig,
    RelayForSemanticSegmentation,
    SegDeformerConfig,
    SegDeformerForSemanticSegmentation,
)

# What the tiny network for volumes has to become for the options of images alone.
IMAGE_UNET = {"patch_size": 4, "merge_strides": None, "window_size": 4, "num_channels": 1}
LABELS = {0: "road", 1: "sky", 2: "tree"}
UNET = {"decoder": "unet", "decoder_hidden_size": None, "upsampling": "nonlocal"}


def tiny_glam_swin(**overrides) -> GlamSwinForSemanticSegmentation:
    options = {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 4,
        "num_global_tokens": 2,
        "drop_path_rate": 0.0,
        "decoder_hidden_size": 8,
        "auxiliary_hidden_size": 8,
        "id2label": LABELS,
    }
    return GlamSwinForSemanticSegmentation(GlamSwinConfig(**{**options, **overrides}))


def tiny_glam_swin_fpn(**overrides) -> GlamSwinForSemanticSegmentation:
    return tiny_glam_swin(**{"decoder": "semantic_fpn", "use_auxiliary_head": True, **overrides})


def tiny_glam_swin_unet(**overrides) -> GlamSwinForSemanticSegmentation:
    return tiny_glam_swin(**{**UNET, **overrides})


def tiny_glam_swin_volumes(**overrides) -> GlamSwinForSemanticSegmentation:
    options = {
        "patch_size": (1, 4, 4),
        "merge_strides": ((1, 2, 2),),
        "window_size": (2, 4, 4),
        "num_channels": 1,
    }
    return tiny_glam_swin(**{**UNET, **options, **overrides})


def tiny_maformer(**overrides) -> MaformerForSemanticSegmentation:
    options = {
        "hidden_sizes": (8, 16, 16),
        "depths": (1, 2, 1),
        "num_heads": (2, 4, 2),
        "gld_grid_size": 4,
        "drop_path_rate": 0.0,
        "decoder_hidden_size": 8,
        "use_auxiliary_head": True,
        "auxiliary_hidden_size": 8,
        "id2label": LABELS,
    }
    return MaformerForSemanticSegmentation(MaformerConfig(**{**options, **overrides}))


def tiny_maformer_unet(**overrides) -> MaformerForSemanticSegmentation:
    return tiny_maformer(**{**UNET, "window_size": 2, "use_auxiliary_head": False, **overrides})


def tiny_cswin(**overrides) -> CswinForSemanticSegmentation:
    options = {
        "hidden_sizes": (8, 16, 16),
        "depths": (1, 2, 1),
        "num_heads": (2, 4, 2),
        "stripe_widths": (1, 3, 0),
        "drop_path_rate": 0.0,
        "decoder_hidden_size": 8,
        "auxiliary_hidden_size": 8,
        "id2label": LABELS,
    }
    return CswinForSemanticSegmentation(CswinConfig(**{**options, **overrides}))


def tiny_cswin_unet(**overrides) -> CswinForSemanticSegmentation:
    return tiny_cswin(**{**UNET, "upsampling": "expand", **overrides})


def tiny_caswit(**overrides) -> CaswitForSemanticSegmentation:
    options = {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 4,
        "drop_path_rate": 0.0,
        "crop_size": 16,
        "gate": "dynamic",  # open from the start, so that claims reach the context
        "decoder_hidden_size": 8,
        "auxiliary_hidden_size": 8,
        "id2label": LABELS,
    }
    return CaswitForSemanticSegmentation(CaswitConfig(**{**options, **overrides}))


def tiny_relay(**overrides) -> RelayForSemanticSegmentation:
    options = {
        "encoder_type": "vit",
        "patch_size": 4,
        "embed_dim": 8,
        "depths": (2,),
        "num_heads": (2,),
        "num_relay_tokens": 2,
        "drop_path_rate": 0.0,
        "crop_size": 16,
        "decoder_hidden_size": 8,
        "auxiliary_hidden_size": 8,
        "id2label": LABELS,
    }
    return RelayForSemanticSegmentation(RelayConfig(**{**options, **overrides}))


def tiny_relay_swinv2(**overrides) -> RelayForSemanticSegmentation:
    options = {
        "encoder_type": "swinv2",
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 2,
        "decoder": "upernet",
    }
    return tiny_relay(**{**options, **overrides})


def tiny_nnformer(**overrides) -> NnFormerForSemanticSegmentation:
    options = {
        "crop_size": (4, 16, 16),
        "patch_size": (1, 4, 4),
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": (4, 2),
        "drop_path_rate": 0.0,
        "id2label": LABELS,
    }
    return NnFormerForSemanticSegmentation(NnFormerConfig(**{**options, **overrides}))


def tiny_glam_nnformer(**overrides) -> NnFormerForSemanticSegmentation:
    return tiny_nnformer(**{"variant": "2021", "num_global_tokens": 2, **overrides})


def tiny_segdeformer(**overrides) -> SegDeformerForSemanticSegmentation:
    options = {
        "backbone_config": tiny_mit(),
        "decoder_hidden_size": 8,
        "auxiliary_hidden_size": 8,
        "id2label": LABELS,
    }
    return SegDeformerForSemanticSegmentation(SegDeformerConfig(**{**options, **overrides}))


def tiny_mit(**overrides) -> SegformerConfig:
    options = {
        "num_encoder_blocks": 2,
        "hidden_sizes": [8, 16],
        "depths": [2, 1],
        "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
        "drop_path_rate": 0.0,
    }
    return SegformerConfig(**{**options, **overrides})


def tiny_segdeformer_glam(**overrides) -> SegDeformerForSemanticSegmentation:
    backbone = tiny_glam_swin().config
    return tiny_segdeformer(**{"backbone_config": backbone, "neck": "linear", **overrides})


def tiny_glam_swinv2(**overrides) -> SegDeformerForSemanticSegmentation:
    backbone = GlamConfig(backbone_config=glam_hosts.swinv2(), num_global_tokens=2)
    return tiny_segdeformer(**{"backbone_config": backbone, "decoder": "semantic_fpn", **overrides})


def tiny_segdeformer_unet(**overrides) -> SegDeformerForSemanticSegmentation:
    return tiny_segdeformer(**{"decoder": "unet", **overrides})


def tiny_segformer() -> SegformerForSemanticSegmentation:
    return SegformerForSemanticSegmentation(tiny_mit(decoder_hidden_size=8, id2label=LABELS))


def tiny_upernet() -> UperNetForSemanticSegmentation:
    backbone = SwinConfig(
        embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4, out_features=["stage1", "stage2"]
    )
    heads = {"hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, id2label=LABELS, **heads))


FOREIGN_SEGMENTERS = {"segformer": tiny_segformer, "upernet": tiny_upernet}  # transformers' own

SEGMENTERS: dict[str, Callable[..., PreTrainedModel]] = {
    "glam_swin": tiny_glam_swin,
    "glam_swin_fpn": tiny_glam_swin_fpn,
    "glam_swin_unet": tiny_glam_swin_unet,
    "maformer": tiny_maformer,
    "maformer_unet": tiny_maformer_unet,
    "cswin": tiny_cswin,
    "cswin_unet": tiny_cswin_unet,
    "caswit": tiny_caswit,
    "relay": tiny_relay,
    "relay_swinv2": tiny_relay_swinv2,
    "segdeformer": tiny_segdeformer,
    "segdeformer_glam": tiny_segdeformer_glam,
    "segdeformer_unet": tiny_segdeformer_unet,
    "glam_swinv2": tiny_glam_swinv2,
    "nnformer": tiny_nnformer,
    "glam_nnformer": tiny_glam_nnformer,
    "glam_swin_volumes": tiny_glam_swin_volumes,
}

VOLUMES = ("nnformer", "glam_nnformer", "glam_swin_volumes")  # the others are of images

# One encoder of each kind (MAFormer has CSWin's windows), under several decoders: for claims that are dear to check for
# every segmenter.
REPRESENTATIVES = ("glam_swin", "maformer_unet", "segdeformer", "glam_swinv2")

OTHER_UPSAMPLING = {
    "upsampling": UNET,
    "nonlocal_bias": {**UNET, "nonlocal_bias": "official", "initializer_range": 0.2},
    "nonlocal_shortcut": {**UNET, "nonlocal_shortcut": "bilinear"},
}
# What a Unet's own options and its heads' become: its width is the first stage's, an auxiliary head has to be asked for.
OTHER_UNET = {
    "decoder": "upernet",
    "decoder_hidden_size": {"decoder": "semantic_fpn", "decoder_hidden_size": 16},
    "use_auxiliary_head": True,
    "auxiliary_hidden_size": {"use_auxiliary_head": True, "auxiliary_hidden_size": 16},
    "auxiliary_loss_weight": {"use_auxiliary_head": True, "auxiliary_loss_weight": 1.0},
}

# For every option of a configuration another value than the tiny one; each must change what the model computes.
OTHER_VALUES = {
    "glam_swin": {
        "num_channels": 4,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (2, 4),
        "window_size": 3,
        "mlp_ratio": 2.0,
        "drop_path_rate": 0.5,
        "num_global_tokens": 3,
        "use_global_attention": False,
        "global_position_embedding": "sincos",
        "global_position_rows": {"global_position_rows": (99, 99), "global_position_embedding": "table"},
        "global_block": {"global_block": "half", "initializer_range": 0.2},
        "global_clamp": {"global_clamp": 0.01, "initializer_range": 0.2},
        "merge_strides": {"merge_strides": (1,)},
        "pretrain_image_size": 32,
        **OTHER_UPSAMPLING,
        "initializer_range": 0.1,
        "layer_norm_eps": 0.1,
        "decoder": "semantic_fpn",
        "decoder_hidden_size": 16,
        "use_auxiliary_head": False,
        "auxiliary_hidden_size": 16,
        "auxiliary_loss_weight": 1.0,
        "semantic_loss_ignore_index": 1,
        "loss": "dice",
        "loss_reduction": "all",
        "label_smoothing": 0.2,
        "class_weights": (1.0, 2.0, 3.0),
    }
}
OTHER_VALUES["glam_swin_fpn"] = {**OTHER_VALUES["glam_swin"], "decoder": "upernet"}
# The options of a segmenter's heads and losses, of which every one changes what any segmenter computes.
OTHER_DECODING = {
    "decoder_hidden_size": 16,
    "use_auxiliary_head": False,
    "auxiliary_hidden_size": 16,
    "auxiliary_loss_weight": 1.0,
    "semantic_loss_ignore_index": 1,
    "loss": "dice",
    "loss_reduction": "all",
    "label_smoothing": 0.2,
    "class_weights": (1.0, 2.0, 3.0),
}
OTHER_STAGES = {
    "num_channels": 4,
    "patch_size": 2,
    "hidden_sizes": (8, 16, 32),
    "depths": (1, 1, 1),
    "num_heads": {"num_heads": (4, 4, 2), "initializer_range": 0.2},
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.5,
    "initializer_range": 0.1,
    "layer_norm_eps": 0.1,
}
OTHER_VALUES["maformer"] = {
    **OTHER_STAGES,
    **OTHER_DECODING,
    **OTHER_UPSAMPLING,
    "stripe_widths": (2, 2),
    "local_attention": "shifted_window",
    "window_size": {"local_attention": "shifted_window", "window_size": 3},
    "global_branch": "conv",
    "fusion": {"fusion": "local_enhanced", "initializer_range": 0.2},
    "gld_grid_size": 6,
    "gld_ratio": 0.25,
    "decoder": "upernet",
}
OTHER_VALUES["cswin"] = {
    **OTHER_STAGES,
    **OTHER_DECODING,
    **OTHER_UPSAMPLING,
    "window_size": {**UNET, "window_size": 2},
    "stripe_widths": (1, 2, 0),
    "stripe_padding": "official",
    "decoder": "semantic_fpn",
}
OTHER_VALUES["caswit"] = {
    **{
        option: other
        for option, other in OTHER_VALUES["glam_swin"].items()
        if not option.startswith("global_")
    },
    "context_ratio": 3,
    "crop_size": 24,
    "gate": "none",
    "fusion_mlp_ratio": 0.0,
    "fusion_feeds_next_stage": False,
    "tie_encoders": True,
    "kv_pooling": {"kv_pooling": (4, 1), "initializer_range": 0.2},
    "context_loss_weight": 0.0,
}
for option in ("num_global_tokens", "use_global_attention", "merge_strides", "pretrain_image_size"):
    del OTHER_VALUES["caswit"][option]
OTHER_MINING = {
    "neck": "linear",
    "neck_depth": {"neck_depth": 3, "neck": "conv"},
    "use_internal_context": False,
    "use_external_context": False,
    "internal_num_heads": {"internal_num_heads": 2, "initializer_range": 0.2},
    "internal_depth": 2,
    "internal_mlp": True,
    "decouple_external_tokens": False,
    "use_external_attention": False,
    "external_tokens": "momentum",
}
PLAIN_VIT = {  # four maps of one stride
    "model_type": "dinov2",
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "apply_layernorm": False,
    "reshape_hidden_states": True,
}
OTHER_VALUES["segdeformer"] = {
    **OTHER_DECODING,
    **OTHER_MINING,
    "initializer_range": {"initializer_range": 0.1, "internal_mlp": True},
    "decoder": "upernet",
    "backbone_config": tiny_mit(depths=[1, 1]),
    "flat_maps": {"flat_maps": "keep", "decoder": "upernet", "backbone_config": PLAIN_VIT},
    "use_auxiliary_head": True,
    "auxiliary_hidden_size": {"auxiliary_hidden_size": 16, "use_auxiliary_head": True},
    "auxiliary_loss_weight": {"auxiliary_loss_weight": 1.0, "use_auxiliary_head": True},
}
OTHER_SCALES = {
    "num_channels": 4,
    "patch_size": 2,
    "embed_dim": 16,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.5,
    "initializer_range": 0.1,
    "layer_norm_eps": 0.1,
    "num_relay_tokens": 3,
    "relay_update": {"relay_update": "mean", "initializer_range": 0.2},
    "context_ratio": 2,
    "crop_size": 8,
    "share_patch_embedding": True,
    "global_loss_weight": 1.0,
    "consistency_weight": 1.0,
}
OTHER_VALUES["relay"] = {
    **OTHER_SCALES,
    "encoder_type": {"encoder_type": "swinv2", "window_size": 2},
    "depths": (1,),
    "num_heads": {"num_heads": (4,), "initializer_range": 0.2},
    "window_size": {"encoder_type": "swinv2", "window_size": 2},
    "pretrained_window_sizes": {
        "encoder_type": "swinv2",
        "window_size": 2,
        "pretrained_window_sizes": (4,),
        "initializer_range": 0.2,
    },
    "share_blocks": False,
    "decoder": "progressive",
    "decoder_hidden_size": {"decoder": "upernet", "decoder_hidden_size": 16},
    "use_auxiliary_head": {"decoder": "semantic_fpn", "use_auxiliary_head": True},
    "auxiliary_hidden_size": {"decoder": "upernet", "auxiliary_hidden_size": 16},
    "auxiliary_loss_weight": {"decoder": "upernet", "auxiliary_loss_weight": 1.0},
    **{
        option: value
        for option, value in OTHER_DECODING.items()
        if option not in ("decoder_hidden_size", *OTHER_UNET)
    },
}
OTHER_VALUES["relay_swinv2"] = {
    **OTHER_SCALES,
    **OTHER_DECODING,
    "encoder_type": {"encoder_type": "vit", "depths": (2,), "num_heads": (2,), "decoder": "one_step"},
    "depths": (2, 1),
    "num_heads": {"num_heads": (2, 2), "initializer_range": 0.2},
    "window_size": 4,
    "pretrained_window_sizes": (4, 4),
    "share_blocks": {"encoder_type": "vit", "depths": (2,), "num_heads": (2,), "share_blocks": False},
    "decoder": "unet",
}
OTHER_VALUES["nnformer"] = {
    "num_channels": 2,
    "crop_size": {"fixed_grid": True, "crop_size": (2, 16, 16)},
    "patch_size": (2, 4, 4),
    "embed_dim": 16,
    "depths": (2, 1),
    "num_heads": {"num_heads": (2, 4), "initializer_range": 0.2},
    "decoder_num_heads": {"decoder_num_heads": (2,), "initializer_range": 0.2},
    "window_size": ((2, 4, 4), 2),
    "downsample_strides": ((1, 2, 2),),
    "variant": "2021",
    "num_global_tokens": 3,
    "global_block": {"num_global_tokens": 2, "global_block": "half", "variant": "2021"},
    "relative_positions": {"relative_positions": "official", "initializer_range": 0.2},
    "fixed_grid": True,
    # where windows fit; elsewhere the cells that wrap around meet padding, which is masked by itself
    "mask_shifted_windows": {"window_size": (3, 2), "mask_shifted_windows": False},
    "pad_last_downsample": False,
    "deep_supervision": {
        "depths": (1, 1, 1),
        "num_heads": (1, 2, 4),
        "window_size": (2, 2, 2),
        "deep_supervision": False,
    },
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.5,
    "initializer_range": 0.1,
    "layer_norm_eps": 0.1,
    **{
        option: OTHER_DECODING[option]
        for option in (
            "semantic_loss_ignore_index",
            "loss",
            "loss_reduction",
            "label_smoothing",
            "class_weights",
        )
    },
}
HALF = {"global_block": "half", "num_global_tokens": 2, "variant": "2021", "initializer_range": 0.2}
OTHER_VALUES["nnformer"] |= {
    "global_clamp": {**HALF, "global_clamp": 0.01},
    "global_position_embedding": {**HALF, "global_position_embedding": "sincos"},
    "global_position_rows": {**HALF, "global_position_embedding": "table", "global_position_rows": (99, 99)},
}
OTHER_VALUES["glam_nnformer"] = {
    **OTHER_VALUES["nnformer"],
    "variant": "2022",
    "global_block": "bare",
    "pad_last_downsample": {"variant": "2022", "pad_last_downsample": False},
}
for family, upsampling in {"glam_swin": "expand", "maformer": "expand", "cswin": "nonlocal_global"}.items():
    OTHER_VALUES[f"{family}_unet"] = {**OTHER_VALUES[family], **OTHER_UNET, "upsampling": upsampling}
OTHER_VALUES["glam_swin_volumes"] = {
    **OTHER_VALUES["glam_swin_unet"],
    "patch_size": (2, 4, 4),
    "merge_strides": ((2, 2, 2),),
    "window_size": 2,
    "nonlocal_bias": {"nonlocal_bias": "official", "initializer_range": 0.2},
    "nonlocal_shortcut": {"nonlocal_shortcut": "bilinear"},
    # What is of images alone.
    "decoder": IMAGE_UNET | {"decoder": "upernet"},
    "decoder_hidden_size": IMAGE_UNET | {"decoder": "semantic_fpn", "decoder_hidden_size": 16},
    "use_auxiliary_head": IMAGE_UNET | {"use_auxiliary_head": True},
    "auxiliary_hidden_size": IMAGE_UNET | {"use_auxiliary_head": True, "auxiliary_hidden_size": 16},
    "auxiliary_loss_weight": IMAGE_UNET | {"use_auxiliary_head": True, "auxiliary_loss_weight": 1.0},
    "pretrain_image_size": IMAGE_UNET | {"pretrain_image_size": 32},
}
OTHER_VALUES["segdeformer_unet"] = {**OTHER_VALUES["segdeformer"]}
for option, other in OTHER_VALUES["segdeformer"].items():  # context mining is of the decoder "segdeformer"
    if option in (*OTHER_MINING, "initializer_range"):
        values = other if isinstance(other, dict) else {option: other}
        OTHER_VALUES["segdeformer_unet"][option] = {"decoder": "segdeformer", **values}
OTHER_VALUES["glam_swinv2"] = {**OTHER_VALUES["segdeformer_unet"], "decoder": "upernet"}
OTHER_VALUES["segdeformer_glam"] = {**OTHER_VALUES["segdeformer"], "neck": "conv"}
IMAGES_ONLY = [values for name, values in OTHER_VALUES.items() if "nnformer" not in name]
for values in IMAGES_ONLY:  # these two speak of one decoder, which every family of images has
    for option, other in (("attention_loss_weight", 1.0), ("reduction_ratio", 2)):
        values[option] = {option: other, "decoder": "segdeformer", "decoder_hidden_size": 8}
    values["auxiliary_map"] = {"auxiliary_map": -1, "decoder": "upernet", "use_auxiliary_head": True}
for option in ("attention_loss_weight", "auxiliary_map", "reduction_ratio"):
    OTHER_VALUES["glam_swin_volumes"][option] |= IMAGE_UNET


def size_for(model: PreTrainedModel, *size: int) -> tuple[int, ...]:
    """The last sides of a size, as many as the images or volumes of a model have."""
    return size[-getattr(model.config, "num_axes", 2) :]


def pixels_for(model: PreTrainedModel, count: int, *size: int, seed: int = 0) -> Tensor:
    """(B, C, G...): random images, or volumes, with the channels of a model and the last sides of a size."""
    channels = getattr(model.config, "num_channels", 3)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *size_for(model, *size), generator=generator)


def labels_for(pixels: Tensor) -> Tensor:
    """(B, C, G...) -> (B, G...): random classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, len(LABELS), (len(pixels), *pixels.shape[2:]), generator=generator)


# Options that change neither the weights nor the loss of a segmenter, but its gradient, only the family's classifier, or
# weights that the comparison sets itself; its own test file shows what.
SHOWN_ELSEWHERE = {
    **dict.fromkeys(("maformer", "maformer_unet"), {"use_token_labels", "token_label_loss_weight"}),
    **dict.fromkeys(("nnformer", "glam_nnformer"), {"initializer_range"}),
    **dict.fromkeys(("relay", "relay_swinv2"), {"detach_consistency"}),
}
