"""Tiny mask-classification models of transformers, with image processors as their published checkpoints have them."""

import torch
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    SwinConfig,
)

NAMES = {0: "wall", 1: "grass", 2: "sky"}
TILE = 32
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SPLIT = {"size": {"shortest_edge": TILE, "longest_edge": None}, "do_split_image": True}
SIZE = {"size": {"shortest_edge": 48, "longest_edge": 96}}


def tiny_eomt(**options):
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}
    fields |= {"image_size": TILE, "patch_size": 8, "num_queries": 6, "num_upscale_blocks": 1}
    fields |= {"mlp_ratio": 2, "train_num_points": 64, "id2label": NAMES}
    return EomtForUniversalSegmentation(EomtConfig(**{**fields, **options}))


def tiny_eomt_dinov3(**options):
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}
    fields |= {"image_size": TILE, "patch_size": 8, "num_queries": 6, "num_upscale_blocks": 1}
    fields |= {"intermediate_size": 32, "train_num_points": 64, "id2label": NAMES}
    return EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**{**fields, **options}))


def tiny_mask2former(**options):
    fields = {"backbone_config": SwinConfig(**SWIN, **STAGES), "feature_size": 64, "mask_feature_size": 64}
    fields |= {"hidden_dim": 64, "encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1}
    fields |= {"decoder_layers": 2, "num_attention_heads": 2, "num_queries": 6, "train_num_points": 64}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**{**fields, "id2label": NAMES, **options}))


def tiny_maskformer(**options):
    from transformers import DetrConfig

    decoder = DetrConfig(
        d_model=16, decoder_layers=1, encoder_layers=1, decoder_ffn_dim=16, encoder_ffn_dim=16,
        decoder_attention_heads=2, encoder_attention_heads=2, num_queries=6,
    )  # fmt: skip
    fields = {"backbone_config": SwinConfig(**SWIN, **STAGES), "decoder_config": decoder, "id2label": NAMES}
    fields |= {"fpn_feature_size": 64, "mask_feature_size": 64}
    return MaskFormerForInstanceSegmentation(MaskFormerConfig(**{**fields, **options}))


def tiny_oneformer(**options):
    fields = {
        "backbone_config": SwinConfig(**SWIN, **STAGES),
        "hidden_dim": 64,
        "mask_dim": 64,
        "conv_dim": 64,
    }
    fields |= {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2}
    fields |= {"num_attention_heads": 2, "num_queries": 6, "query_dec_layers": 1, "is_training": False}
    fields |= {"text_encoder_width": 16, "text_encoder_num_layers": 1, "train_num_points": 64}
    return OneFormerForUniversalSegmentation(OneFormerConfig(**{**fields, "id2label": NAMES, **options}))


MASK_MODELS = {
    "eomt": (tiny_eomt, EomtImageProcessor, SPLIT),
    "eomt_dinov3": (tiny_eomt_dinov3, EomtImageProcessor, SPLIT),
    "mask2former": (tiny_mask2former, Mask2FormerImageProcessor, SIZE),
    "maskformer": (tiny_maskformer, MaskFormerImageProcessor, SIZE),
    "oneformer": (tiny_oneformer, OneFormerImageProcessor, SIZE),
}


def spread_out(_model, _inputs, outputs):
    """Makes the queries of a random model differ as those of a trained one do: logits with a standard deviation of 3."""
    for name, axes in (("class_queries_logits", 1), ("masks_queries_logits", (2, 3))):
        logits = outputs[name]
        outputs[name] = 3 * (logits - logits.mean(axes, keepdim=True)) / logits.std(axes, keepdim=True)
    return outputs


def build(kind):
    """A tiny random model of a type, and its image processor."""
    torch.manual_seed(0)
    model, processor, options = MASK_MODELS[kind]
    model = model().eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "quer" in name:
                weights.mul_(10)
    model.register_forward_hook(spread_out)
    return model, processor(**options)
