"""Checkpoints of the relay tokens' authors: every tensor arrives, under whatever prefix and options."""

import json
import re

import pytest
import torch
from cases import each
from safetensors.torch import save_file
from torch import Tensor

from contextseg import RelayConfig, RelayForSemanticSegmentation
from contextseg.processing.image_processing_segmentation import SegmentationImageProcessor
from contextseg.scripts.conversion.relay_official import relay_from_official
from contextseg.scripts.convert_weights import main

VIT = {
    "encoder_type": "vit",
    "depths": (2,),
    "num_heads": (2,),
    "embed_dim": 8,
    "patch_size": 8,
    "crop_size": 24,
}
SWINV2 = {"depths": (1, 2), "num_heads": (2, 4), "embed_dim": 8, "window_size": 4, "crop_size": 32}
NAMES = (  # from ours to theirs; queries, keys and values have been joined before
    (r"^backbone\.encoder\.", "model."),
    (r"\blocal_embed\.", "patch_embed.0."),
    (r"\bcontext_embed\.", "patch_embed.1."),
    (r"\bpatch_embed\.(\d)\.position\.table$", r"pos_embed.\1"),
    (r"\bpatch_embed\.(\d)\.patch_embed\.", r"patch_embed.\1."),
    (r"\bprojection\.", "proj."),
    (r"\battention\.o_proj\.", "attn.proj."),
    (r"\battention\.([qv])_proj\.bias$", r"attn.\1_bias"),
    (r"\battention\.log_scale$", "attn.logit_scale"),
    (r"\bposition_bias\.fc1\.", "attn.cpb_mlp.0."),
    (r"\bposition_bias\.fc2\.", "attn.cpb_mlp.2."),
    (r"\bstages\.", "layers."),
    (r"\bmerges\.(\d)\.patches\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
    (r"\bmerges\.(\d)\.relay_tokens\.", lambda match: f"layers.{int(match[1]) + 1}.downsample_token."),
    (r"^backbone\.pyramid\.stage\d\.", "model.norm."),
    (r"^classifier\.", "seg_head.layers.0."),
)
CROP_INDEX = (  # of ViT
    (r"\bcontext_blocks\.(\d)\.(attn|mlp|norm\d)\.", r"blocks.\1.\2.1."),
    (r"(?<!context_)\bblocks\.(\d)\.(attn|mlp|norm\d)\.(?!\d\.)", r"blocks.\1.\2.0."),
)


def official(model: RelayForSemanticSegmentation) -> dict[str, Tensor]:
    """The weights of our model as the authors would store them."""
    is_vit, tokens = model.config.encoder_type == "vit", model.config.num_relay_tokens
    ours = with_joined_projections(dict(model.state_dict()), ("weight", "bias") if is_vit else ("weight",))
    rows = torch.randn(tokens, model.config.embed_dim)
    if tokens:
        initial = ours.pop("backbone.encoder.relay_tokens.initial")
        name = "model.reg_token" if is_vit else "model.register_token"
        ours[name] = (initial - rows if is_vit else initial)[None]
    theirs = {"model.head.fc.weight": torch.zeros(10, 8)}
    for name, tensor in ours.items():
        stored = torch.cat([rows, tensor])[None] if name.endswith("position.table") else tensor
        stored = stored[:, None, None] if name.endswith("log_scale") else stored
        for pattern, replacement in (*NAMES, *(CROP_INDEX if is_vit else ())):
            name = re.sub(pattern, replacement, name)
        if is_vit and model.config.share_patch_embedding:
            name = name.replace("patch_embed.0.", "patch_embed.")
        theirs[name] = stored.contiguous()
    return theirs


def with_joined_projections(weights: dict[str, Tensor], kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Queries, keys and values as one projection."""
    for name in [name for name in weights if name.endswith("q_proj.weight")]:
        for kind in kinds:
            parts = [weights.pop(name.replace("q_proj.weight", f"{part}_proj.{kind}")) for part in "qkv"]
            weights[name.replace("attention.q_proj.weight", f"attn.qkv.{kind}")] = torch.cat(parts)
    return weights


def arguments(config: RelayConfig) -> dict:
    if config.encoder_type == "vit":
        return {"num_heads": config.num_heads[0], "layer_norm_eps": config.layer_norm_eps}
    return {"num_heads": config.num_heads, "window_size": config.window_size, "img_size": config.crop_size}


def segmenter(options: dict) -> RelayForSemanticSegmentation:
    return RelayForSemanticSegmentation(RelayConfig(**{"num_labels": 3, **options}))


@each("prefix", ["", "net.module."])
@each(
    "options",
    {
        "vit": VIT,
        "vit without relay tokens": {**VIT, "num_relay_tokens": 0},
        "vit with shared embedding": {**VIT, "share_patch_embedding": True},
        "vit with separate blocks": {**VIT, "share_blocks": False, "num_channels": 4},
        "swinv2": SWINV2,
        "swinv2 without relay tokens": {**SWINV2, "num_relay_tokens": 0},
        "swinv2 with shared embedding": {**SWINV2, "share_patch_embedding": True, "num_channels": 4},
        "swinv2 with a relay token": {**SWINV2, "num_relay_tokens": 1},
    },
)
def test_every_tensor_arrives(prefix, options):
    model = segmenter(options)
    stored = {prefix + name: tensor for name, tensor in official(model).items()}
    converted = relay_from_official(stored, {**arguments(model.config), "relay_update": "merge"})
    assert converted.config.relay_update == "mean"
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], expected, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_the_command_writes_a_folder_for_images_with_more_bands(tmp_path, capsys):
    model = segmenter({**SWINV2, "num_channels": 4})
    save_file(official(model), tmp_path / "relay.safetensors")
    (tmp_path / "relay.json").write_text(json.dumps(arguments(model.config)))
    files = ["--weights", f"{tmp_path}/relay.safetensors", "--arguments", f"{tmp_path}/relay.json"]
    assert main(["--source", "relay-official", *files, "--output", f"{tmp_path}/out"]) == 0
    assert "divides by 255" in capsys.readouterr().out
    assert len(SegmentationImageProcessor.from_pretrained(tmp_path / "out").image_mean) == 4
    loaded = RelayForSemanticSegmentation.from_pretrained(tmp_path / "out")
    image = torch.randn(1, 4, 40, 33)
    torch.testing.assert_close(loaded(image).logits, model.eval()(image).logits)


@each(
    ("changed", "message"),
    {
        "no heads": ({"num_heads": None}, "lack 'num_heads'"),
        "channels of two kinds": ({"num_channels": [3, 4]}, "one image"),
        "a class token": ({"class_token": True}, "only class_token=False"),
        "a misspelling": ({"share_patch_embedd": True}, "share_patch_embed'"),
        "separate blocks": ({"share_block_weights": False}, "share_blocks is False"),
    },
)
def test_what_cannot_be_converted_is_refused(changed, message):
    model = segmenter(SWINV2)
    given = {**arguments(model.config), **changed}
    with pytest.raises(ValueError, match=message):
        relay_from_official(
            official(model), {name: value for name, value in given.items() if value is not None}
        )


def test_a_decoder_in_larger_steps_is_refused():
    model = segmenter(SWINV2)
    weights = {**official(model), "seg_head.layers.0.0.weight": torch.zeros(16, 8, 4, 4)}
    with pytest.raises(ValueError, match=r"steps of 4 \(decoder_stride\)"):
        relay_from_official(weights, arguments(model.config))


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="not those of a segmenter with relay tokens"):
        relay_from_official({"head.weight": torch.zeros(1)}, {"num_heads": 2})
