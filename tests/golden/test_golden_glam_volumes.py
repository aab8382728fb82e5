"""The three token paths of GLAM in volumes against tensors of the authors' code: blocks with gradients, and stages.

What the last block of a stage does to its global tokens is not compared: the authors throw it away, and we never
compute it.
"""

import re
from math import prod

import pytest
import torch
from golden_cases import GoldenCase, cases_of_kind
from torch import Tensor, nn

from contextseg.configuration.configuration_glam_swin import GlamSwinConfig
from contextseg.modeling.attention import Attention
from contextseg.modeling.decoder_nnformer import NnFormerStep
from contextseg.modeling.positions import GlobalPositionTable
from contextseg.modeling.skip_attention import AddedSkip
from contextseg.modeling.swin_stages import StageSizes, SwinBlock, SwinStage, WindowCut
from contextseg.modeling.volume_embedding import VolumeDownsampling, VolumeUpsampling
from contextseg.modeling.windows import plan_windows, shift_masks

EAGER = GlamSwinConfig(attn_implementation="eager")
RENAMED = (
    (r"\bgt_attn\.", "global_attention."),
    (r"\battn\.relative_position_bias_table", "position_bias.table"),
    (r"\battn\.", "attention."),
    (r"\bnorm3\.", "global_norm1."),
    (r"\bnorm4\.", "global_norm2."),
    (r"\bmlp2\.", "global_mlp."),
    (r"\bproj\.", "o_proj."),
    (r"^Upsample\.", "upsample."),
    (r"\b(up|reduction)\.", "convolution."),
    (r"\bglobal_token$", "global_tokens.initial"),
    (r"\bpe$", "global_position.table"),
)


def our_name(name: str) -> str:
    """The name of a weight of theirs in a block or stage of ours, but for joined projections."""
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def ours_from(weights: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Their weights under our names, without those that do not reach the output."""
    named = {}
    for name, value in weights.items():
        name = our_name(name)
        parts = value.chunk(3) if ".qkv." in name else (value,)
        for part, letter in zip(parts, "qkv", strict=False):
            named[name.replace(".qkv.", f".{letter}_proj.")] = part
    return {name: value for name, value in named.items() if name in wanted}


def sizes(case: GoldenCase, depth: int) -> StageSizes:
    arguments = case.description["constructor"]
    # A window that the grid does not exceed has its shortest side and is not shifted: their rule.
    window = arguments.get("window_size_effective") or min(
        arguments["window_size"], *arguments["input_resolution"]
    )
    shifts = arguments.get("shift_per_block")
    path, clamps = arguments.get("token_path", "half"), arguments.get("clamp", True)
    return StageSizes(
        dim=arguments["dim"],
        depth=depth,
        num_heads=arguments["num_heads"],
        window=(window,) * 3,
        mlp_ratio=4,
        drop_path_rates=(0.0,) * depth,
        num_global_tokens=arguments["gt_num"],
        global_position_embedding="none" if path == "transformer" else "table",
        global_position_rows=arguments.get("position_rows", 0),
        global_block=path,
        global_clamp=1.0 if clamps else None,
        shifted_blocks=None if shifts is None else tuple(shift > 0 for shift in shifts),
        position_index="official",
    )


def filled(module: nn.Module, case: GoldenCase) -> nn.Module:
    module.load_state_dict(ours_from(case.weights, set(module.state_dict())))
    return module.eval()


@pytest.mark.parametrize("case", cases_of_kind("glam3d", "block.*"))
def test_blocks_and_their_gradients_are_the_authors(case):
    arguments = case.description["constructor"]
    block = filled(SwinBlock(EAGER, sizes(case, 2), 0.0, is_last=False), case)
    given = {
        name: case.tensors[name].clone().requires_grad_()
        for name in ("x", "gt", "pe")
        if name in case.tensors
    }
    grid, count = arguments["input_resolution"], arguments["gt_num"]
    features = given["x"].unflatten(1, grid)
    windows = plan_windows(tuple(grid), block.position_bias.window, arguments["shift_size_effective"] > 0)
    tokens = given["gt"].expand(features.shape[0] * prod(windows.counts), -1, -1)
    tokens = tokens.unflatten(0, (features.shape[0], -1))
    position = None
    if "pe" in given:
        rows, needed = given["pe"].shape[0], prod(windows.counts) * count
        position = given["pe"].narrow(0, rows // 2 - needed // 2, needed)
    masks = shift_masks(windows, features.device, features.dtype)
    features, tokens = block(features, tokens, WindowCut(windows, masks, None, position))
    case.check("out", features)
    case.check("out_gt", tokens)
    if "cotangent.out" in case.tensors:
        targets = {"out": features, "out_gt": tokens}
        cotangents = case.starting("cotangent.")
        sum(
            (cotangents[name] * value.reshape(cotangents[name].shape)).sum()
            for name, value in targets.items()
        ).backward()
        for name, value in given.items():
            case.check(f"grad.input.{name}", value.grad)
        expected = case.starting("grad.param.")
        parameters = dict(block.named_parameters())
        wanted = ours_from(expected, set(parameters))
        assert len(wanted) >= len(expected) > 0
        for name, gradient in wanted.items():
            torch.testing.assert_close(parameters[name].grad, gradient, rtol=0, atol=1e-4)


def stage_of(case: GoldenCase, **parts: nn.Module) -> nn.ModuleDict:
    """Their stage with its resampling, filled with the weights of a case."""
    stage = SwinStage(EAGER, sizes(case, case.description["constructor"]["depth"]))
    module = nn.ModuleDict({"stage": stage, **parts}).eval()
    weights = {re.sub("^(blocks|global_token|pe)", r"stage.\1", name): v for name, v in case.weights.items()}
    module.load_state_dict(ours_from(weights, set(module.state_dict())))
    return module


def tokens_of_first_block(stage: SwinStage) -> dict[str, Tensor]:
    seen = {}
    stage.blocks[0].register_forward_hook(
        lambda *call: seen.update({"mid.block0": call[-1][0], "mid.block0_gt": call[-1][1]})
    )
    return seen


@pytest.mark.parametrize("case", cases_of_kind("glam3d", "stage_(?!decoder).*"))
def test_stages_and_their_gradients_are_the_authors(case):
    arguments = case.description["constructor"]
    parts = {}
    if "out_down" in case.tensors:
        parts["downsample"] = VolumeDownsampling(arguments["dim"], 2 * arguments["dim"], (2, 2, 2), False)
    module, given = stage_of(case, **parts), case.tensors["x"].clone().requires_grad_()
    seen = tokens_of_first_block(module["stage"])
    features = module["stage"](given.unflatten(1, arguments["input_resolution"]))
    found = {"out": features, **seen}
    if parts:
        found["out_down"] = module["downsample"](features.movedim(-1, 1))
    for name, value in found.items():
        case.check(name, value)
    cotangents = case.starting("cotangent.")
    if not cotangents:
        return
    sum(
        (cotangents[name] * found[name].reshape(cotangents[name].shape)).sum() for name in cotangents
    ).backward()
    case.check("grad.input.x", given.grad)
    slopes = {name: parameter.grad for name, parameter in module.named_parameters()}
    expected = case.starting("grad.param.")
    named = {
        re.sub("^(blocks|global_token|pe)", r"stage.\1", name): value for name, value in expected.items()
    }
    wanted = ours_from(named, set(slopes))
    assert len(wanted) >= len(expected) > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(slopes[name], gradient, rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("case", cases_of_kind("glam3d", "stage_decoder.*"))
@torch.no_grad()
def test_stages_of_the_decoder_are_the_authors(case):
    arguments = case.description["constructor"]
    dim, grid = arguments["dim"], arguments["input_resolution"]
    module = stage_of(case, upsample=VolumeUpsampling(2 * dim, dim, (2, 2, 2)))
    seen = tokens_of_first_block(module["stage"])
    step = NnFormerStep(module["upsample"], AddedSkip(), module["stage"])
    coarser = case.tensors["x"].unflatten(1, [side // 2 for side in grid])
    found = {"out": step(coarser, case.tensors["skip"].unflatten(1, grid)), **seen}
    for name, value in found.items():
        case.check(name, value)


@pytest.mark.parametrize("case", cases_of_kind("glam3d", "global_attention"))
def test_global_attention_reads_the_middle_of_the_table(case):
    arguments = case.description["constructor"]
    attention = Attention(EAGER, arguments["dim"], arguments["num_heads"])
    weights = {f"global_attention.{name}": value for name, value in case.weights.items()}
    wanted = {f"global_attention.{name}" for name in attention.state_dict()}
    attention.load_state_dict(
        {name.removeprefix("global_attention."): value for name, value in ours_from(weights, wanted).items()}
    )
    table = GlobalPositionTable(len(case.tensors["pe"]), 1, arguments["dim"])
    table.table.data = case.tensors["pe"]
    for name, tokens in case.starting("x").items():
        count = tokens.shape[1]
        position = table(plan_windows((count,), (1,)))
        case.check(f"out{name}", attention(tokens + position)[0])
    for name in case.starting("out"):
        if name.endswith("_nopos"):
            case.check(f"out{name}", attention(case.tensors[f"x{name.removesuffix('_nopos')}"])[0])
