"""nnFormer and GLAM-nnFormer against tensors of the authors' code: blocks, stages, parts and whole networks.

Weights reach the modules through the product's conversion tables; `case.json` alone says how a case is built. Every
stored output of a case is compared. What the last block of a stage does to its global tokens is not: the authors throw
it away, and we never compute it.
"""

import re

import pytest
import torch
from golden_cases import GoldenCase, cases_of_kind
from torch import Tensor, nn

from contextseg.configuration.configuration_nnformer import NnFormerConfig
from contextseg.modeling.decoder_nnformer import NnFormerStep
from contextseg.modeling.label_rows import VolumeClassifier
from contextseg.modeling.positions import official_position_index
from contextseg.modeling.renaming import RenamingTable, fill
from contextseg.modeling.skip_attention import SkipAttentionBlock
from contextseg.modeling.swin_stages import StageSizes, SwinStage
from contextseg.modeling.volume_embedding import VolumeDownsampling, VolumeEmbedding, VolumeUpsampling
from contextseg.scripts.conversion.nnformer_official import (
    EMBEDDING,
    RESAMPLING,
    VOLUME_BLOCKS,
    decoder_blocks,
    nnformer_from_official,
    nnformer_table,
)

EAGER = NnFormerConfig.preset("nano", attn_implementation="eager")
HEAD = RenamingTable(((r"^up\.", ""),), transposed=(r"^weight$",))


def sizes(case: GoldenCase, blocks: slice = slice(None)) -> StageSizes:
    """The numbers of a block or of some blocks of a stage; windows and shifts as the authors' rule leaves them."""
    arguments = case.description["constructor"]
    windows = arguments.get("window_per_block", [arguments.get("window_size_effective")])
    shifts = arguments.get("shift_per_block", [arguments.get("shift_size_effective", 0)])[blocks]
    window = windows[0]
    return StageSizes(
        dim=arguments["dim"],
        depth=len(shifts),
        num_heads=arguments["num_heads"],
        window=tuple(window) if isinstance(window, list) else (window,) * 3,
        mlp_ratio=arguments.get("mlp_ratio", 4),
        drop_path_rates=(0.0,) * len(shifts),
        shifted_blocks=tuple(shift not in (0, [0, 0, 0]) for shift in shifts),
        position_index="official",
    )


def on_grid(tokens: Tensor, grid: list[int]) -> Tensor:
    """(B, N, C) -> (B, G..., C)."""
    return tokens.unflatten(1, grid)


def grid_of(case: GoldenCase, name: str = "grid") -> list[int]:
    arguments = case.description["constructor"]
    return arguments.get("input_resolution") or case.description["notes"][name]


def watched(block: nn.Module) -> dict[str, Tensor]:
    """What a block computes on the way, filled when it runs."""
    seen = {}
    block.attention.register_forward_hook(lambda _, __, output: seen.update({"mid.window_out": output[0]}))
    block.attention.register_forward_hook(lambda _, __, output: seen.update({"mid.attn_prob": output[1]}))
    block.mlp.register_forward_hook(lambda _, __, output: seen.update({"mid.mlp_out": output}))
    return seen


def attention_block(case: GoldenCase) -> dict[str, Tensor]:
    stage = SwinStage(EAGER, sizes(case)).eval()
    fill(stage.blocks[0], VOLUME_BLOCKS.apply(case.weights))
    seen = watched(stage.blocks[0])
    features = on_grid(case.tensors["x"], grid_of(case))
    cut = stage.cut(features, None, stage.shifted_blocks[0])
    index = official_position_index(stage.window, features.device)
    mask = None if cut.shift_masks is None else cut.shift_masks.of_windows
    constants = {"const.relative_position_index": index.int(), "const.attn_mask": mask}
    return {"out": stage(features), **seen, **constants}


def skip_attention_block(case: GoldenCase) -> dict[str, Tensor]:
    block = SkipAttentionBlock(EAGER, sizes(case), 0.0).eval()
    fill(block, VOLUME_BLOCKS.apply(case.weights))
    seen = watched(block)
    upsampled, skip = (on_grid(case.tensors[name], grid_of(case)) for name in ("x_up", "skip"))
    return {"out": block(upsampled, skip), **seen}


def stage_encoder(case: GoldenCase) -> dict[str, Tensor]:
    parts = nn.ModuleDict({"stage": SwinStage(EAGER, sizes(case)), "downsample": downsampling(case)}).eval()
    table = RenamingTable(
        ((r"^blocks\.", "stage.blocks."), *RESAMPLING.renamed, *VOLUME_BLOCKS.renamed), VOLUME_BLOCKS.split
    )
    fill(parts, table.apply(case.weights))
    seen = outputs_of_blocks(parts["stage"])
    features = parts["stage"](on_grid(case.tensors["x"], grid_of(case)))
    return {"out": features, "out_down": parts["downsample"](features.movedim(-1, 1)), **seen}


def outputs_of_blocks(stage: SwinStage, first: int = 0) -> dict[str, Tensor]:
    seen = {}
    for index, block in enumerate(stage.blocks, start=first):
        block.register_forward_hook(
            lambda _, __, output, index=index: seen.update({f"mid.block{index}": output[0]})
        )
    return seen


def stage_decoder(case: GoldenCase) -> dict[str, Tensor]:
    arguments = case.description["constructor"]
    step = NnFormerStep(
        VolumeUpsampling(2 * arguments["dim"], arguments["dim"], (2, 2, 2)),
        SkipAttentionBlock(EAGER, sizes(case, slice(1)), 0.0),
        SwinStage(EAGER, sizes(case, slice(1, None))),
    ).eval()
    renamed = (
        (r"^", "steps.0."),
        (r"\bUpsample\.", "upsample."),
        *RESAMPLING.renamed,
        *decoder_blocks("2022"),
    )
    table = RenamingTable(
        (*renamed, (r"^decoder\.steps\.0\.", ""), *VOLUME_BLOCKS.renamed), VOLUME_BLOCKS.split
    )
    fill(step, table.apply(case.weights))
    seen = outputs_of_blocks(step.stage, first=1)
    step.upsample.register_forward_hook(lambda _, __, output: seen.update({"mid.upsampled": output}))
    step.skip.register_forward_hook(lambda _, __, output: seen.update({"mid.block0": output}))
    finer = grid_of(case)
    coarser = [side // 2 for side in finer]
    return {"out": step(on_grid(case.tensors["x"], coarser), on_grid(case.tensors["skip"], finer)), **seen}


def downsampling(case: GoldenCase) -> VolumeDownsampling:
    weight = next(tensor for name, tensor in case.weights.items() if name.endswith("reduction.weight"))
    overlaps = 3 in weight.shape[2:]
    stride = tuple((side + 1) // 2 if overlaps else side for side in weight.shape[2:])
    return VolumeDownsampling(weight.shape[1], len(weight), stride, overlaps)


def patch_merging(case: GoldenCase) -> dict[str, Tensor]:
    module = downsampling(case).eval()
    fill(module, RESAMPLING.apply(case.weights))
    inputs = [name for name in case.tensors if not name.startswith("out")]
    return {
        name.replace("x", "out"): module(
            on_grid(case.tensors[name], grid_of(case, name.replace("x", "grid"))).movedim(-1, 1)
        )
        for name in inputs
    }


def patch_expanding(case: GoldenCase) -> dict[str, Tensor]:
    dim, grid = case.description["constructor"]["dim"], grid_of(case)
    module = VolumeUpsampling(dim, dim // 2, (2, 2, 2)).eval()
    fill(module, RESAMPLING.apply(case.weights))
    return {"out": module(on_grid(case.tensors["x"], grid), tuple(2 * side for side in grid))}


def segmentation_head(case: GoldenCase) -> dict[str, Tensor]:
    arguments = case.description["constructor"]
    patch = tuple(arguments["patch_size"])
    module = VolumeClassifier(arguments["dim"], arguments["num_class"], patch)
    fill(module, HEAD.apply(case.weights))
    return {"out": module(case.tensors["x"].movedim(-1, 1))}


def embedding(case: GoldenCase) -> dict[str, Tensor]:
    arguments = case.description["constructor"]
    patch = tuple(arguments["patch_size"])
    module = VolumeEmbedding(arguments["in_chans"], arguments["embed_dim"], patch).eval()
    fill(module, EMBEDDING.apply(case.weights))
    inputs = [name for name in case.tensors if name == "x" or name.startswith("x_")]
    found = {name.replace("x", "out"): module(case.tensors[name]).movedim(-1, 1) for name in inputs}
    watch = {
        "mid.conv1": module.steps[0].convolution,
        "mid.proj1": module.steps[1],
        "mid.proj2": module.convolution,
    }
    for name, part in watch.items():
        part.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    module(case.tensors["x"])
    return found


def network(case: GoldenCase) -> dict[str, Tensor]:
    model = nnformer_from_official(case.weights, case.description)
    volume = case.tensors["x"] if "x" in case.tensors else case.tensors["x_int8"].float() / 32
    volume.requires_grad_()
    seen, grid_tokens = {}, model.backbone.encoder
    grid_tokens.embeds[0].register_forward_hook(
        lambda _, __, output: seen.update({"mid.embed": output.movedim(-1, 1)})
    )
    for index, norm in enumerate(model.backbone.norms.values()):
        norm.register_forward_hook(
            lambda _, __, output, index=index: seen.update({f"mid.skip{index}": output.flatten(1, -2)})
        )
    steps = len(model.decoder.steps)
    for index, step in enumerate(model.decoder.steps):
        level = steps - 1 - index
        step.register_forward_hook(
            lambda _, __, output, level=level: seen.update({f"mid.decoder{level}": output.flatten(1, -2)})
        )
        watch_tokens(seen, f"mid.gt_dec{level}", step.stage)
    for index, stage in enumerate(model.backbone.encoder.stages):
        watch_tokens(seen, f"mid.gt_enc{index}", stage)
    model.decoder.register_forward_hook(lambda _, __, output: seen.update(decoded=output))
    first = model(volume).logits
    logits = [first, *model.decoder.coarser_logits(seen.pop("decoded").coarser_maps)]
    seen |= {f"out.logits{level}": output for level, output in enumerate(logits)}
    return seen | gradients(case, model, volume, logits)


def watch_tokens(seen: dict[str, Tensor], prefix: str, stage: SwinStage) -> None:
    for index, block in enumerate(stage.blocks):
        if not block.is_last:
            block.register_forward_hook(
                lambda _, __, output, index=index: seen.update({f"{prefix}_block{index}": output[1]})
            )


def gradients(case: GoldenCase, model: nn.Module, volume: Tensor, logits: list[Tensor]) -> dict[str, Tensor]:
    """The stored gradients of `out.loss`, under the names of the authors' parameters."""
    if "out.loss" not in case.tensors:
        return {}
    loss = logits[0].square().mean() + 0.5 * logits[1].square().mean()
    loss.backward()
    found = {"out.loss": loss[None], "grad.input.x": volume.grad}
    slopes = {name: parameter.grad for name, parameter in model.named_parameters()}
    table = nnformer_table(case.weights, model.config)
    for name in case.starting("grad.param."):
        weight = case.weights[name.removesuffix(".sample")]
        parts = table.cut(table.rename(name.removesuffix(".sample")), weight)
        found[f"grad.param.{name}"] = torch.cat([slopes[part] for part, _ in parts])
    return found


RUNS = {
    "attention_block": attention_block,
    "skip_attention_block": skip_attention_block,
    "stage_encoder": stage_encoder,
    "stage_decoder": stage_decoder,
    "patch_merging": patch_merging,
    "patch_expanding": patch_expanding,
    "segmentation_head": segmentation_head,
    "embedding": embedding,
    "network": network,
}
CASES = [
    *cases_of_kind(
        "nnformer", "(skip_)?attention_block|stage_.*|patch_.*|segmentation_head|embedding|network.*"
    ),
    *cases_of_kind("glam3d", "patch_.*|embedding|network.*"),
]


def numbers(pattern: str, text: str) -> list[int] | None:
    match = re.search(pattern, text)
    return [int(number) for number in match[1].split(",")] if match else None


def picked(tensor: Tensor, meaning: str) -> Tensor:
    """The part of a tensor that a case stores, as its meaning says."""
    if match := re.search(r"sub-sample \[([^\]]*)\] of shape", meaning):
        steps = [part.strip().split(":") for part in match[1].split(",")]
        return tensor[tuple(slice(*(int(n) if n else None for n in step)) for step in steps)]
    if "first and last" in meaning:
        tensor = tensor[[0, -1]]
    if windows := numbers(r"windows \[([\d, ]+)\]", meaning):
        tensor = tensor[windows]
    if rows := numbers(r"query rows \[([\d, ]+)\]", meaning):
        tensor = tensor[..., rows, :]
    return tensor


def statistics(tensor: Tensor) -> Tensor:
    exact = tensor.detach().double()
    return torch.stack([exact.mean(), exact.std(correction=0), exact.min(), exact.max()])


@pytest.mark.parametrize("case", CASES)
def test_parts_and_networks_are_the_authors(case):
    kind = re.sub("^network_.*", "network", case.kind)  # of whichever token path
    with torch.set_grad_enabled(kind == "network"):
        found = RUNS[kind](case)
    stored = [name for name in case.tensors if name.startswith(("out", "mid.", "const.", "grad."))]
    dead = [name for name in stored if re.search(r"^mid\.gt_.*_block(\d+)", name) and not_ours(name, found)]
    for name in set(stored) - set(dead):
        whole = found[name.removesuffix(".sample").removesuffix(".stats")]
        is_summary = name.endswith(".stats")
        case.check(name, statistics(whole) if is_summary else picked(whole, case.meaning(name)))
    assert any(name.startswith("out") for name in stored)


def not_ours(name: str, found: dict[str, Tensor]) -> bool:
    """Whether these are the tokens after the last block of a stage."""
    name = re.sub(r"\.(sample|stats)$", "", name)
    return name not in found and re.sub(r"_block\d+", "_block0", name) in found
