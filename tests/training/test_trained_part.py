"""Frozen modules and LoRA: what is trained, what is saved, and that nothing else changes."""

import pytest
import torch
from cases import each
from safetensors.torch import load_file
from tiny import tiny_glam_swin, tiny_segformer
from tiny_runs import run_options
from transformers import AutoModelForSemanticSegmentation

from contextseg.modeling.lora import add_lora, merged_weights
from contextseg.scripts.train import main
from contextseg.training.checkpoints import load_state
from contextseg.training.trained_part import select_trained, without_lora


def frozen_parts(model):
    return {name.partition(".")[0] for name, weight in model.named_parameters() if not weight.requires_grad}


@each("build", [tiny_glam_swin, tiny_segformer])
def test_a_frozen_backbone_stays_in_evaluation_mode_and_keeps_no_activations(build):
    model = select_trained(build(), ["backbone"], lora=0).train()
    part = "segformer" if build is tiny_segformer else "backbone"
    assert frozen_parts(model) == {part}
    assert not any(module.training for module in model.get_submodule(part).modules())
    assert model.training
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.grad_fn), lambda tensor: tensor
    ):
        outputs = model.get_submodule(part)(torch.randn(2, 3, 32, 32))
    assert not kept
    assert not any(value.requires_grad for value in outputs.to_tuple() if torch.is_tensor(value))


def test_stages_are_frozen_by_the_end_of_their_name():
    model = select_trained(tiny_glam_swin(), ["patch_embed", "encoder.stages.0"], lora=0).train()
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    parts = ("backbone.encoder.patch_embed.", "backbone.encoder.stages.0.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(parts)}


@each(
    ("names", "message"),
    [
        (["encodr"], "--freeze encodr: no module .* Its parts are backbone, decoder, classifier"),
        (["backbone", "decoder", "classifier", "auxiliary_head"], "leaves nothing to train"),
    ],
)
def test_wrong_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        select_trained(tiny_glam_swin(), names, lora=0)


def test_merged_weights_give_the_outputs_of_the_model_with_lora():
    model = select_trained(tiny_glam_swin(), [], lora=2).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    plain = tiny_glam_swin().eval()
    plain.load_state_dict(without_lora(model, model.state_dict()))
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(plain(pixels).logits, model(pixels).logits, atol=1e-4, rtol=1e-4)


def test_merging_is_that_of_peft():
    adapted = add_lora(tiny_glam_swin(), r=2, lora_alpha=4)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    merged = merged_weights(adapted.get_base_model(), adapted.get_base_model().state_dict())
    torch.testing.assert_close(merged, dict(adapted.merge_and_unload().state_dict()))


def test_a_run_with_lora_saves_the_plain_model_and_keeps_the_updates_for_resuming(data, tmp_path):
    changes = [
        "--steps",
        "4",
        "--eval-interval",
        "2",
        "--lora",
        "2",
        "--ema",
        "0.9",
        "--learning-rate",
        "1e-2",
    ]
    assert main([*run_options(data, tmp_path / "whole"), *changes, "--layer-decay", "0.9"]) == 0
    saved = load_file(tmp_path / "whole" / "last" / "model.safetensors")
    model, info = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "whole" / "last", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert saved.keys() == dict(model.state_dict()).keys()
    assert not (tmp_path / "whole" / "last" / "adapter_config.json").exists()
    state = load_state(tmp_path / "whole" / "last")["model"]
    assert any("lora_A" in name for name in state)


def test_a_run_with_a_frozen_backbone_changes_the_rest_only(data, tmp_path):
    changes = ["--steps", "2", "--eval-interval", "1", "--ema", "0.5"]
    main([*run_options(data, tmp_path / "start"), "--steps", "1"])
    model = ["--init-from", str(tmp_path / "start")]
    assert main([*run_options(data, tmp_path / "run", model=model), *changes, "--freeze", "backbone"]) == 0
    before, after = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("start", "run"))
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "classifier", "auxiliary_head"}
