"""The three token paths of GLAM in volumes against tensors of the authors' code: blocks with gradients, and stages.

What the last block of a stage does to its global tokens is not compared: the authors throw it away, and we never
compute it.
"""

import re
from math import prod

import pytest
import torch
from golden_cases import GoldenCase, golden_cases
from torch import Tensor

from contextseg.configuration.configuration_glam_swin import GlamSwinConfig
from contextseg.modeling.attention import Attention
from contextseg.modeling.positions import GlobalPositionTable
from contextseg.modeling.swin_stages import StageSizes, SwinBlock, SwinStage, WindowCut
from contextseg.modeling.windows import plan_windows, shift_mask

EAGER = GlamSwinConfig(attn_implementation="eager")
RENAMED = (
    (r"\bgt_attn\.", "global_attention."),
    (r"\battn\.relative_position_bias_table", "position_bias.table"),
    (r"\battn\.", "attention."),
    (r"\bnorm3\.", "global_norm1."),
    (r"\bnorm4\.", "global_norm2."),
    (r"\bmlp2\.", "global_mlp."),
    (r"\bproj\.", "o_proj."),
    (r"^global_token$", "global_tokens.initial"),
    (r"^pe$", "global_position.table"),
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
    path, clamps = arguments.get("token_path", "half"), arguments.get("clamp", True)
    return StageSizes(
        dim=arguments["dim"],
        depth=depth,
        num_heads=arguments["num_heads"],
        window=(arguments.get("window_size_effective", arguments.get("window_size")),) * 3,
        mlp_ratio=4,
        drop_path_rates=(0.0,) * depth,
        num_global_tokens=arguments["gt_num"],
        global_position_embedding="none" if path == "transformer" else "table",
        global_position_rows=arguments.get("position_rows", 0),
        global_block=path,
        global_clamp=1.0 if clamps else None,
        position_index="official",
    )


def filled(module: torch.nn.Module, case: GoldenCase) -> torch.nn.Module:
    module.load_state_dict(ours_from(case.weights, set(module.state_dict())))
    return module.eval()


BLOCKS = [case for case in golden_cases("glam3d") if case.id.startswith(("block", "none"))]
STAGES = [
    case
    for case in golden_cases("glam3d")
    if case.id.startswith(("stage_encoder", "stage_transformer", "none"))
]
DECODERS = [case for case in golden_cases("glam3d") if case.id in ("stage_decoder", "none")]
ATTENTION = [case for case in golden_cases("glam3d") if case.id in ("global_attention", "none")]


@pytest.mark.parametrize("case", BLOCKS)
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
    mask = shift_mask(windows, features.device, features.dtype)
    features, tokens = block(features, tokens, WindowCut(windows, mask, None, position))
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


@pytest.mark.parametrize("case", STAGES)
def test_stages_are_the_authors(case):
    arguments, seen = case.description["constructor"], {}
    stage = filled(SwinStage(EAGER, sizes(case, arguments["depth"])), case)
    stage.blocks[0].register_forward_hook(lambda *call: seen.update(output=call[-1]))
    with torch.no_grad():
        features = stage(case.tensors["x"].unflatten(1, arguments["input_resolution"]))
    case.check("mid.block0", seen["output"][0])
    case.check("mid.block0_gt", seen["output"][1])
    case.check("out", features)


@pytest.mark.parametrize("case", ATTENTION)
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
    case.check("out8_nopos", attention(case.tensors["x8"])[0])
