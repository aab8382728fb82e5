"""Whole SegDeformer checkpoints in the names of mmsegmentation, which a model of ours is put into first."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, tiny_mit, tiny_segdeformer
from transformers import AutoModelForSemanticSegmentation, SegformerModel

from contextseg.scripts.conversion.mit_mmseg import mit_config, mit_from_mmseg
from contextseg.scripts.convert_weights import main

# From the names that transformers gives a saved encoder to mmsegmentation's.
ENCODER = [
    (r"^encoder\.patch_embeddings\.(\d)\.proj\.", r"layers.\1.0.projection."),
    (r"^encoder\.patch_embeddings\.(\d)\.layer_norm\.", r"layers.\1.0.norm."),
    (r"^encoder\.block\.(\d)\.(\d+)\.", r"layers.\1.1.\2."),
    (r"^encoder\.layer_norm\.(\d)\.", r"layers.\1.2."),
    (r"attention\.self\.sr\.", "attn.sr."),
    (r"attention\.self\.layer_norm\.", "attn.norm."),
    (r"attention\.output\.dense\.", "attn.attn.out_proj."),
    (r"layer_norm_(\d)\.", r"norm\1."),
    (r"mlp\.dense1\.", "ffn.layers.0."),
    (r"mlp\.dwconv\.dwconv\.", "ffn.layers.1."),
    (r"mlp\.dense2\.", "ffn.layers.4."),
]
HEAD = [
    (r"^classifier\.", "conv_seg."),
    (r"^decoder\.neck\.projections\.", "convs."),
    (r"^decoder\.neck\.fusion\.", "fusion_conv."),
    (r"^decoder\.internal\.layers\.0\.attention\.", "trans.attn."),
    (r"^decoder\.external\.tokens\.class_tokens$", "class_token.cls_token"),
    (r"^decoder\.external\.tokens\.info_tokens$", "class_token.prop_token"),
    (r"^decoder\.external\.(q|k)_proj\.", r"class_token.\1."),
    (r"^decoder\.external\.attention\.", "trans.cross_attn."),
    (r"\bq_proj\.", "query_project."),
    (r"\bk_proj\.", "key_project."),
    (r"\bv_proj\.", "value_project."),
    (r"\bo_proj\.", "out_project."),
    (r"\.convolution\.", ".conv."),
    (r"\.norm\.", ".bn."),
]


def rename(name, table):
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def in_mmseg_names(encoder, folder):
    encoder.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    tensors = {}
    for name, tensor in stored.items():
        if match := re.fullmatch(r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.query\.(weight|bias)", name):
            parts = [stored[name.replace("query", part)] for part in ("query", "key", "value")]
            tensors[f"layers.{match[1]}.1.{match[2]}.attn.attn.in_proj_{match[3]}"] = torch.cat(parts)
        elif not re.search(r"self\.(key|value)\.", name):
            convolution = re.search(r"mlp\.dense\d\.weight", name)
            tensors[rename(name, ENCODER)] = tensor[..., None, None] if convolution else tensor
    return tensors


@pytest.fixture
def checkpoint(tmp_path):
    """A model of ours, and the file that mmsegmentation would have written of it."""
    torch.manual_seed(0)
    model = tiny_segdeformer().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    tensors = in_mmseg_names(model.backbone.encoder.model, tmp_path / "encoder")
    tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in model.state_dict().items():
        if not name.startswith("backbone."):
            is_token = name.endswith(("class_tokens", "info_tokens"))
            tensors[f"decode_head.{rename(name, HEAD)}"] = tensor[None] if is_token else tensor
    file = tmp_path / "segdeformer.pth"
    torch.save({"meta": {}, "state_dict": tensors}, file)
    return model, file


def test_a_whole_checkpoint_computes_the_same_here(checkpoint, tmp_path):
    model, file = checkpoint
    (tmp_path / "names.json").write_text(json.dumps({"id2label": LABELS}))
    command = ["--source", "segdeformer-official", "--weights", str(file), "--output", str(tmp_path / "ours")]
    main([*command, "--arguments", str(tmp_path / "names.json")])
    converted = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours").eval()
    assert list(converted.config.id2label.values()) == list(LABELS.values())
    image = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        torch.testing.assert_close(converted(image).logits, model(image).logits)


def test_sizes_are_read_from_the_tensors(tmp_path):
    encoder = SegformerModel(tiny_mit(num_attention_heads=[1, 2]))
    config = mit_config(in_mmseg_names(encoder, tmp_path))
    for field in ("depths", "hidden_sizes", "sr_ratios", "patch_sizes", "num_attention_heads", "mlp_ratios"):
        assert list(getattr(config, field)) == list(getattr(encoder.config, field)), field


def test_a_tensor_too_few_or_too_many_is_named(tmp_path):
    weights = in_mmseg_names(SegformerModel(tiny_mit()), tmp_path)
    with pytest.raises(ValueError, match=r"not a Mix Transformer of mmsegmentation: .*cls_token"):
        mit_from_mmseg({**weights, "cls_token": torch.zeros(1)} | {"layers.0.1.0.cls_token": torch.zeros(1)})
    del weights["layers.0.2.bias"]
    with pytest.raises(ValueError, match=r"not a Mix Transformer of mmsegmentation: .*layer_norm"):
        mit_from_mmseg(weights)


def test_another_model_is_refused(tmp_path):
    torch.save({"state_dict": {"backbone.patch_embed.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match="is not a Mix Transformer"):
        main(
            [
                "--source",
                "segdeformer-official",
                "--weights",
                f"{tmp_path}/other.pth",
                "--output",
                f"{tmp_path}/x",
            ]
        )
