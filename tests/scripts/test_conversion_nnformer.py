"""Checkpoints of nnFormer's and GLAM-nnFormer's authors: every tensor arrives, and what cannot be converted is named."""

import json
import re

import pytest
import torch
from cases import each
from safetensors.torch import save_file
from tiny import tiny_nnformer
from transformers import AutoImageProcessor

from contextseg import NnFormerForSemanticSegmentation, VolumeImageProcessor
from contextseg.scripts.conversion.nnformer_official import nnformer_from_official
from contextseg.scripts.convert_weights import main

ACDC = {
    "patch_size": (1, 4, 4),
    "window_size": ((2, 2, 2), (3, 2, 2)),
    "crop_size": (7, 16, 16),
    "mask_shifted_windows": False,
    "pad_last_downsample": False,
}
MODELS = {
    "current": {},
    "as for ACDC": ACDC,
    "one head": {"deep_supervision": False, "decoder_num_heads": (2,)},
    "three stages": {"depths": (2, 1, 3), "num_heads": (1, 2, 4), "window_size": (4, 2, 2)},
    "transformer": {"variant": "2021", "num_global_tokens": 2},
    "half": {
        "variant": "2021",
        "num_global_tokens": 1,
        "global_block": "half",
        "global_clamp": 1.0,
        "global_position_embedding": "table",
    },
}
NAMES = (  # from ours to theirs; queries, keys and values have been joined before
    (r"^classifier\.", "final.0.up."),
    (r"^decoder\.heads\.(\d)\.", lambda match: f"final.{int(match[1]) + 1}.up."),
    (r"^backbone\.norms\.stage(\d)\.", lambda match: f"model_down.norm{int(match[1]) - 1}."),
    (r"^backbone\.encoder\.embeds\.0\.steps\.0\.convolution\.", "model_down.patch_embed.proj1.conv1."),
    (r"^backbone\.encoder\.embeds\.0\.steps\.0\.norm\.", "model_down.patch_embed.proj1.norm1."),
    (r"^backbone\.encoder\.embeds\.0\.steps\.1\.convolution\.", "model_down.patch_embed.proj1.conv2."),
    (r"^backbone\.encoder\.embeds\.0\.steps\.1\.norm\.", "model_down.patch_embed.proj1.norm2."),
    (r"^backbone\.encoder\.embeds\.0\.steps\.2\.convolution\.", "model_down.patch_embed.proj2.conv1."),
    (r"^backbone\.encoder\.embeds\.0\.steps\.2\.norm\.", "model_down.patch_embed.proj2.norm1."),
    (r"^backbone\.encoder\.embeds\.0\.convolution\.", "model_down.patch_embed.proj2.conv2."),
    (r"^backbone\.encoder\.embeds\.0\.norm\.", "model_down.patch_embed.norm."),
    (
        r"^backbone\.encoder\.embeds\.(\d)\.",
        lambda match: f"model_down.layers.{int(match[1]) - 1}.downsample.",
    ),
    (r"downsample\.convolution\.", "downsample.reduction."),
    (r"^backbone\.encoder\.stages\.", "model_down.layers."),
    (r"\.upsample\.convolution\.", ".Upsample.up."),
    (r"\.upsample\.norm\.", ".Upsample.norm."),
    (r"\bposition_bias\.table$", "attn.relative_position_bias_table"),
    (r"\bglobal_attention\.o_proj\.", "gt_attn.proj."),
    (r"\bglobal_attention\.qkv\.", "gt_attn.qkv."),
    (r"\battention\.o_proj\.", "attn.proj."),
    (r"\battention\.(qkv|kv)\.", r"attn.\1."),
    (r"\bglobal_norm1\.", "norm3."),
    (r"\bglobal_norm2\.", "norm4."),
    (r"\bglobal_mlp\.", "mlp2."),
    (r"\bglobal_tokens\.initial$", "global_token"),
    (r"\bglobal_position\.table$", "pe"),
)


def theirs(model):
    """The weights under the authors' names, with tensors that they have and nothing reads."""
    config, joined = model.config, {}
    for name, tensor in model.state_dict().items():
        if re.search(r"(^classifier|\.heads\.\d)\.weight$", name):
            tensor = tensor.transpose(0, 1)  # channels first
        kind = "kv" if ".skip." in name else "qkv"
        joined.setdefault(re.sub(r"\b[qkv]_proj\b", kind, name), []).append(tensor)
    renamed, last = {}, config.num_layers - 1
    for name, parts in joined.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if match := re.match(r"decoder\.steps\.(\d)\.(stage\.)?(.*)", name):
            prefix = (
                f"{'decoder' if config.variant == '2022' else 'encoder'}.layers.{last - 1 - int(match[1])}."
            )
            inner = match[3].replace("skip.", "blocks.0.")
            if match[2] and config.variant == "2022":
                inner = re.sub(r"blocks\.(\d)", lambda block: f"blocks.{int(block[1]) + 1}", inner)
            name = prefix + inner
        renamed[name] = torch.cat(parts)
    renamed["model_down.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(3, 3)
    renamed[f"model_down.layers.{last}.downsample.norm.weight"] = torch.ones(3)
    return renamed


def arguments_of(model):
    return {"crop_size": model.config.crop_size, "window_size": model.config.window_size, "num_classes": 3}


def official(**options):
    torch.manual_seed(0)
    model = tiny_nnformer(relative_positions="official", fixed_grid=True, initializer_range=0.2, **options)
    return model.eval()


@each("options", MODELS)
def test_every_tensor_arrives(options):
    model = official(**options)
    volume = torch.randn(1, 1, 7, 16, 17)
    converted = nnformer_from_official(theirs(model), arguments_of(model))
    with torch.no_grad():
        torch.testing.assert_close(converted(volume).logits, model(volume).logits, rtol=0, atol=1e-6)


def test_the_command_writes_a_folder(tmp_path, capsys):
    model = official()
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs(model).items()}, tmp_path / "w.safetensors"
    )
    (tmp_path / "arguments.json").write_text(json.dumps(arguments_of(model)))
    command = ["--source", "nnformer-official", "--weights", tmp_path / "w.safetensors"]
    command += ["--arguments", tmp_path / "arguments.json", "--output", tmp_path / "out"]
    assert main([str(part) for part in command]) == 0
    loaded = NnFormerForSemanticSegmentation.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path / "out"), VolumeImageProcessor)
    assert "set target_spacing" in capsys.readouterr().out


@each(
    ("change", "message"),
    {
        "no crop": ({"crop_size": None}, "lack 'crop_size'"),
        "unknown": ({"memory": 3}, "does not know the argument 'memory'"),
    },
)
def test_arguments_that_cannot_be_converted_are_named(change, message):
    model = official()
    arguments = {
        name: value for name, value in {**arguments_of(model), **change}.items() if value is not None
    }
    with pytest.raises(ValueError, match=message):
        nnformer_from_official(theirs(model), arguments)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="not those of an nnFormer"):
        nnformer_from_official({"layers.0.weight": torch.ones(1)}, {"crop_size": [4, 4, 4], "window_size": 2})
