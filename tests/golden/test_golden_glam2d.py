"""GLAM-Swin against tensors of the authors' code: blocks, stages, non-local upsampling, backbones and segmenters.

Weights reach the modules through the product's conversion table; whole models through `contextseg-convert`'s own
function, a folder on disk and `from_pretrained`. Every stored output, intermediate, attention and gradient has to be
accounted for. What the last block of a stage does to its global tokens is not compared, since the authors throw it
away and we never compute it; of that block's window attention only the rows of visual tokens have a counterpart.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, golden_cases
from torch import Tensor, nn

from contextseg.configuration.configuration_glam_swin import GlamSwinConfig
from contextseg.modeling.blocks import Encoded
from contextseg.modeling.modeling_glam_swin import GlamSwinBackbone, GlamSwinForSemanticSegmentation
from contextseg.modeling.nonlocal_upsampling import NonLocalUpsample, UpsamplingSizes, WindowCrossAttention
from contextseg.modeling.patches import PatchMerge
from contextseg.modeling.positions import GlobalPositionTable
from contextseg.modeling.renaming import RenamingTable, fill
from contextseg.modeling.swin_stages import StageSizes, SwinBlock, SwinStage, WindowCut
from contextseg.modeling.windows import plan_windows, shift_masks
from contextseg.scripts.conversion.glam_blocks import BLOCKS, dead_parts
from contextseg.scripts.conversion.glam_official import MODEL, glam_swin_from_official
from contextseg.scripts.conversion.glam_position_tables import center_rows
from contextseg.scripts.conversion.glam_unet_official import (
    NONLOCAL,
    SHORTCUTS,
    UNUSED_SHORTCUT,
    fitted_nonlocal,
    unet_options,
    unet_table,
)
from contextseg.scripts.convert_weights import convert_weights

EAGER = GlamSwinConfig(attn_implementation="eager")


class Recorder:
    """What blocks compute on the way, under the authors' names."""

    def __init__(self, blocks: Mapping[str, SwinBlock]) -> None:
        self.values: dict[str, Tensor] = {}
        self.dead: list[str] = []  # patterns of what has no counterpart here
        self.visual_rows_only: set[str] = set()
        for name, block in blocks.items():
            self.watch(f"mid.{name}", block)

    def watch(self, prefix: str, block: SwinBlock) -> None:
        if block.is_last:
            self.dead.append(rf"^{re.escape(prefix)}(global_tokens|gmsa)")
            self.visual_rows_only.add(f"{prefix}wmsa_probs")
        block.attention.register_forward_hook(
            lambda _, __, output: self.values.update({f"{prefix}wmsa_probs": output[1]})
        )
        block.register_forward_hook(lambda _, __, output: self.record_tokens(prefix, output[1]))
        if block.global_attention is not None:
            block.attention.register_forward_hook(
                lambda _, __, output: self.values.update(
                    {f"{prefix}global_tokens_after_wmsa": output[0][:, : -block_tokens(block)]}
                )
            )
            block.global_attention.register_forward_hook(
                lambda _, __, output: self.values.update({f"{prefix}gmsa_probs": output[1]})
            )

    def record_tokens(self, prefix: str, tokens: Tensor | None) -> None:
        if tokens is not None:
            self.values[f"{prefix}global_tokens_out"] = tokens


def block_tokens(block: SwinBlock) -> int:
    """Visual tokens of a window."""
    side, other = block.position_bias.window
    return side * other


def sizes(arguments: dict, depth: int, rows: int = 0, use_global_attention: bool = True) -> StageSizes:
    """The numbers of a block's or a stage's constructor arguments."""
    return StageSizes(
        dim=arguments["dim"],
        depth=depth,
        num_heads=arguments["num_heads"],
        window=(arguments["window_size"],) * 2,
        mlp_ratio=arguments["mlp_ratio"],
        drop_path_rates=(0.0,) * depth,
        num_global_tokens=arguments["gt_num"],
        use_global_attention=use_global_attention,
        global_position_embedding="table" if use_global_attention else "none",
        global_position_rows=rows,
    )


def on_grid(tokens: Tensor, case: GoldenCase) -> Tensor:
    """(B, H * W, C) -> (B, H, W, C)."""
    return tokens.unflatten(1, case.description["call"]["hw"])


def run_block(case: GoldenCase, inputs: dict[str, Tensor]) -> tuple[nn.Module, Recorder]:
    """One block, called with the windows, mask and positions that a stage would hand it."""
    uses_gmsa = not case.kind.endswith("no_gmsa")
    block = SwinBlock(
        EAGER, sizes(case.arguments, 1, use_global_attention=uses_gmsa), 0.0, is_last=False
    ).eval()
    fill(block, BLOCKS.apply(case.weights))
    recorder = Recorder({"": block})
    features = on_grid(inputs["hidden_states"], case)
    windows = plan_windows(
        tuple(features.shape[1:-1]), (case.arguments["window_size"],) * 2, bool(case.arguments["shift_size"])
    )
    masks = shift_masks(windows, features.device, features.dtype)
    position = None
    if uses_gmsa:
        rows, dim = inputs["pe"].shape
        reader = GlobalPositionTable(rows, case.arguments["gt_num"], dim)
        position = torch.func.functional_call(reader, {"table": inputs["pe"]}, (windows,))
    counts = windows.counts[0] * windows.counts[1]
    tokens = inputs["global_tokens"].expand(len(features) * counts, -1, -1).unflatten(0, (-1, counts))
    features, tokens = block(features, tokens, WindowCut(windows, masks, None, position))
    mask = None if masks is None else masks.of_windows
    recorder.values.update({"out.hidden_states": features, "out.global_tokens": tokens, "in.attn_mask": mask})
    return block, recorder


def run_stage(case: GoldenCase, inputs: dict[str, Tensor]) -> tuple[nn.Module, Recorder]:
    """One stage and the merging after it."""
    weights = BLOCKS.with_dropped(dead_parts("", case.arguments["depth"])).apply(case.weights)
    rows = len(weights.get("global_position.table", ()))
    uses_gmsa = not case.kind.endswith("no_gmsa")
    stage = SwinStage(EAGER, sizes(case.arguments, case.arguments["depth"], rows, uses_gmsa)).eval()
    if case.arguments.get("downsample"):
        stage.add_module("downsample", PatchMerge(case.arguments["dim"], (2, 2)))  # the authors' place for it
    fill(stage, weights)
    recorder = Recorder({f"blocks.{index}.": block for index, block in enumerate(stage.blocks)})
    features = stage(on_grid(inputs["hidden_states"], case))
    recorder.values["out.hidden_states"] = features
    if case.arguments.get("downsample"):
        recorder.values["out.downsampled"] = stage.downsample(features)
    return stage, recorder


def run_nonlocal(case: GoldenCase, inputs: dict[str, Tensor]) -> tuple[nn.Module, Recorder]:
    """One NLU block. The authors' factor of its branches is inside its weights here."""
    arguments = case.arguments
    shortcut = SHORTCUTS[arguments["residual_patch_expand"]]
    upsampling = UpsamplingSizes(
        dim=arguments["dim"],
        out_dim=arguments["dim"] // 2,
        num_heads=arguments["num_heads"],
        window=(arguments["window_size"],) * 2,
        factor=(2, 2),
        mlp_ratio=arguments["mlp_ratio"],
        bias="official",
        shortcut=shortcut,
    )
    block = NonLocalUpsample(upsampling, WindowCrossAttention(EAGER, upsampling)).eval()
    factor = arguments.get("cross_attention_weight", 1.0)
    weights = NONLOCAL.with_dropped([UNUSED_SHORTCUT[shortcut]]).apply(case.weights)
    fill(block, fitted_nonlocal(weights, factor))
    recorder = Recorder({})
    kept = recorder.values
    block.attend.attention.register_forward_hook(
        lambda _, __, output: kept.update(
            {"mid.cross_attention_windows_out": output[0] / factor, "mid.attention_probs": output[1]}
        )
    )
    record(recorder, block.shortcut, f"mid.shortcut_{'patch_expand' if shortcut == 'expand' else shortcut}")
    kept["out.hidden_states"] = block(
        on_grid(inputs["hidden_states"], case),
        inputs["skip"].unflatten(1, case.description["call"]["hw_skip"]),
    )
    return block, recorder


def record(recorder: Recorder, module: nn.Module, name: str) -> None:
    """Keeps what a module returns."""
    module.register_forward_hook(lambda _, __, output: recorder.values.update({name: output}))


def watch_encoder(backbone: GlamSwinBackbone, prefix: str) -> Recorder:
    return Recorder(
        {
            f"{prefix}layers.{i}.blocks.{j}.": block
            for i, stage in enumerate(backbone.encoder.stages)
            for j, block in enumerate(stage.blocks)
        }
    )


def run_backbone(inputs: dict[str, Tensor], folder: Path) -> tuple[nn.Module, Recorder]:
    """A backbone that was converted to a folder."""
    backbone = GlamSwinBackbone.from_pretrained(folder, attn_implementation="eager")
    recorder = watch_encoder(backbone, "")
    maps = backbone(inputs["pixel_values"]).feature_maps
    recorder.values.update({f"out.feature_map_{i}": feature_map for i, feature_map in enumerate(maps)})
    return backbone, recorder


def run_segmenter(inputs: dict[str, Tensor], folder: Path) -> tuple[nn.Module, Recorder]:
    """A segmenter that was converted to a folder, with its losses."""
    model = GlamSwinForSemanticSegmentation.from_pretrained(folder, attn_implementation="eager")
    recorder = watch_encoder(model.backbone, "backbone.")
    maps = model.backbone(inputs["pixel_values"]).feature_maps
    recorder.values.update({f"out.feature_map_{i}": feature_map for i, feature_map in enumerate(maps)})
    outputs = model(inputs["pixel_values"], labels=inputs["labels"])
    size = inputs["pixel_values"].shape[2:]
    recorder.values["out.logits_quarter"] = outputs.logits
    recorder.values["out.logits_full"] = F.interpolate(
        outputs.logits, size, mode="bilinear", align_corners=False
    )
    recorder.values["out.loss_main"] = main_loss = model.label_loss(outputs.logits, inputs["labels"])
    if model.auxiliary_head is not None:
        recorder.values["out.aux_logits"] = model.auxiliary_head(maps[-2])
        recorder.values["out.loss_aux_weighted"] = outputs.loss - main_loss
    return model, recorder


def run_unet(inputs: dict[str, Tensor], folder: Path) -> tuple[nn.Module, Recorder]:
    """A Unet that was converted to a folder, with its loss."""
    model = GlamSwinForSemanticSegmentation.from_pretrained(folder, attn_implementation="eager")
    recorder = watch_encoder(model.backbone, "swin_unet.")
    watch_decoder(recorder, model)
    model.backbone.encoder.register_forward_hook(lambda _, __, output: record_encoder(recorder, output))
    recorder.values["mid.encoder_out_normed"] = on_cells(
        model.backbone(inputs["pixel_values"]).feature_maps[-1]
    )
    outputs = model(inputs["pixel_values"], labels=inputs["labels"])
    size = inputs["pixel_values"].shape[2:]
    recorder.values["out.logits"] = outputs.logits
    recorder.values["out.logits_resized_to_input"] = F.interpolate(
        outputs.logits, size, mode="bilinear", align_corners=False
    )
    recorder.values["out.loss_main"] = outputs.loss
    return model, recorder


def on_cells(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def record_encoder(recorder: Recorder, encoded: Encoded) -> None:
    recorder.values["mid.patch_embed"] = encoded.inputs[0].movedim(-1, 1)
    for stage, features in enumerate([*encoded.inputs[1:], encoded.outputs[-1]]):
        recorder.values[f"mid.encoder_stage_{stage}_out_after_merging"] = features


def watch_decoder(recorder: Recorder, model: GlamSwinForSemanticSegmentation) -> None:
    """The authors' modules are our steps with NLU; without, each ends with the expansion that begins our next step."""
    has_nonlocal = model.config.upsampling == "nonlocal"
    for index, step in enumerate(model.decoder.steps):
        record(recorder, step.upsample, f"mid.{'nlu' if has_nonlocal else 'layers_up'}_{index}_out")
        module = index if has_nonlocal else index + 1
        if has_nonlocal or index == len(model.decoder.steps) - 1:
            record(recorder, step.stage, f"mid.layers_up_{module}_out")
        for number, block in enumerate(step.stage.blocks):
            recorder.watch(f"mid.swin_unet.layers_up.{module}.blocks.{number}.", block)
    record(recorder, model.decoder.norm, "mid.decoder_out_normed")


PARTS = {
    "nlu_block": run_nonlocal,
    "glam_block": run_block,
    "glam_block_no_gmsa": run_block,
    "glam_stage": run_stage,
    "glam_stage_no_gmsa": run_stage,
}
MODELS = {
    "glam_swin_backbone": run_backbone,
    "glam_swin_backbone_no_gmsa": run_backbone,
    "swin_backbone": run_backbone,
    "glam_swin_upernet": run_segmenter,
    "swin_upernet": run_segmenter,
    "swin_unet": run_unet,
    "swin_unet_nlu": run_unet,
    "glam_swin_unet": run_unet,
    "glam_swin_unet_nlu": run_unet,
}


def run(case: GoldenCase, folder: Path) -> tuple[nn.Module, Recorder, dict[str, Tensor]]:
    """Builds the case from its description, and runs it with gradients."""
    inputs = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point())
        for name, tensor in case.starting("in.").items()
    }
    if case.kind in PARTS:
        return *PARTS[case.kind](case, inputs), inputs
    convert_weights("glam-official", case.folder / "weights.safetensors", folder, case.folder / "case.json")
    return *MODELS[case.kind](inputs, folder), inputs


def gradients(
    case: GoldenCase, module: nn.Module, recorder: Recorder, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of the stored random combination of outputs, under the authors' names."""
    sum(
        (v * recorder.values[name].reshape(v.shape)).sum()
        for name, v in case.starting("in.cotangent.").items()
    ).backward()
    found = {f"grad.input.{name}": tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
    for name, expected in case.starting("grad.param.").items():
        gradient = parameter_gradient(module, renaming(case), name)
        if name.endswith("relative_position_bias_table"):  # NLU's has rows that nothing addresses
            gradient = F.pad(gradient, (0, 0, 0, len(expected) - len(gradient)))
        if name.endswith(".used_slice"):
            gradient = center_rows(gradient, len(expected))
        found[f"grad.param.{name}"] = gradient
    return found


def renaming(case: GoldenCase) -> RenamingTable:
    """The table that gave the parameters of a case their names."""
    if case.kind == "nlu_block":
        return NONLOCAL
    if "unet" in case.kind:
        return unet_table(case.weights, unet_options(case.arguments, case.weights))
    return BLOCKS if case.kind in PARTS else MODEL


def parameter_gradient(module: nn.Module, table: RenamingTable, name: str) -> Tensor:
    """The gradient of one of the authors' parameters; that of queries, keys and values is put together again."""
    parts = table.cut(table.rename(name), torch.zeros(3))
    return torch.cat([module.get_parameter(part).grad for part, _ in parts])


@pytest.mark.parametrize("case", golden_cases("glam2d"))
def test_outputs_tokens_attentions_and_losses_are_the_authors(case, tmp_path):
    _, recorder, _ = run(case, tmp_path)
    stored = [name for name in case.tensors if name.startswith(("out.", "mid.", "in.attn_mask"))]
    for name in stored:
        if not any(re.search(pattern, name) for pattern in recorder.dead):
            case.check(name, recorder.values[name], name in recorder.visual_rows_only)


UNET_CASES = [case for case in golden_cases("glam2d") if case.id == "none" or "unet" in case.values[0].kind]


@pytest.mark.parametrize("case", UNET_CASES)
def test_a_unets_training_checkpoint_converts_to_the_same_model(case):
    bare = glam_swin_from_official(case.weights, case.arguments)
    weights = {f"backbone.{name}": tensor for name, tensor in case.weights.items()}
    weights["decode_head.conv_seg.weight"] = torch.zeros(30, 512, 1, 1)  # the wrapper's, used by nothing
    arguments = {"backbone": {**case.arguments, "type": "Unet", "depths_decoder": [1, 2, 2, 2]}}
    torch.testing.assert_close(glam_swin_from_official(weights, arguments).state_dict(), bare.state_dict())


@pytest.mark.parametrize("case", golden_cases("glam2d", storing="grad."))
def test_gradients_are_the_authors(case, tmp_path):
    module, recorder, inputs = run(case, tmp_path)
    found = gradients(case, module, recorder, inputs)
    for name in (name for name in case.tensors if name.startswith("grad.")):
        case.check(name, found[name])
