"""Relay tokens against tensors of the authors' code: blocks, stages and whole segmenters, under both update rules.

Weights reach the modules through the product's conversion table; whole models through `contextseg-convert`'s own
function, a folder on disk and `from_pretrained`. Every stored output of these cases has to be accounted for.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_cases import GoldenCase, golden_cases
from torch import Tensor, nn

from contextseg.configuration.configuration_relay import RelayConfig
from contextseg.modeling.modeling_relay import RelayForSemanticSegmentation
from contextseg.modeling.pyramid_encoder import GridAttention, PreNormBlock
from contextseg.modeling.relay_swinv2 import RelayMerge, RelayStage
from contextseg.modeling.relay_tokens import RELAY_UPDATES, TwoScales
from contextseg.modeling.relay_vit import attend_with_relay
from contextseg.modeling.renaming import fill
from contextseg.modeling.swinv2_blocks import ShiftedWindows, SwinV2Block, SwinV2Sizes, padded_shift_masks
from contextseg.modeling.windows import plan_windows
from contextseg.scripts.conversion.relay_official import SWINV2_BLOCK, SWINV2_STAGE, VIT_BLOCK, flat_scales
from contextseg.scripts.convert_weights import convert_weights

Outputs = dict[str, Tensor]
RULES = {"seq": "sequential", "mean": "mean"}  # the prefix of the stored tensors, and our name


class Relays:
    """The relay tokens that every pass of a block returned, under the authors' names."""

    def __init__(self, name: str, name_of_mean: str) -> None:
        self.names = {"seq": name, "mean": name_of_mean}
        self.passes: dict[int, list[Tensor]] = {}

    def watch(self, blocks: nn.ModuleList, tokens_of: Callable[[object], Tensor]) -> None:
        for index, block in enumerate(blocks):
            block.register_forward_hook(
                lambda _, __, output, index=index: self.passes.setdefault(index, []).append(tokens_of(output))
            )

    def take(self, rule: str) -> Outputs:
        """What was recorded since the last call."""
        found = {}
        for index, (first, second) in self.passes.items():
            name = self.names[rule].format(index)
            both = {f"{name}_global": first, f"{name}_local": second}
            found.update(both if rule == "seq" else {name: (first + second) / 2})
        self.passes.clear()
        return found


def relay_tokens(case: GoldenCase, features: Tensor) -> Tensor:
    """The stored relay tokens; a case without any may not store them."""
    none = features.new_zeros(len(features), 0, features.shape[-1])
    return case.tensors.get("in.relay_in", none)


def config(attention: str) -> RelayConfig:
    return RelayConfig(attn_implementation=attention)


def check_rules(case: GoldenCase, run: Callable[[str], Outputs]) -> None:
    """Compares what `run` returns for each rule with the stored outputs, of which none may remain."""
    checked = set()
    for rule in RULES:
        for name, ours in run(rule).items():
            stored = f"out.{name}" if f"out.{name}" in case.tensors else f"out.{rule}.{name}"
            if stored in case.tensors:
                case.check(stored, ours)
                checked.add(stored)
    assert checked == {name for name in case.tensors if name.startswith("out.")}


def run_vit_block(case: GoldenCase, attention: str, _folder: Path) -> Callable[[str], Outputs]:
    """One block, or one for each crop, on both crops."""
    sizes, tokens = case.description["constructor"], relay_tokens(case, case.tensors["in.tokens_local"])
    weights = VIT_BLOCK.apply({f"blocks.0.{name}": tensor for name, tensor in case.weights.items()})
    blocks = nn.ModuleDict()
    for name in {name.partition(".")[0] for name in weights}:
        attend = GridAttention(config(attention), sizes["dim"], sizes["num_heads"])
        block = PreNormBlock(attend, sizes["dim"], sizes["mlp_ratio"], 0.0, sizes["layer_norm_eps"])
        blocks[name] = nn.ModuleList([block])
    fill(blocks, weights)
    first, second = (
        blocks["blocks"][0],
        blocks["context_blocks" if "context_blocks" in blocks else "blocks"][0],
    )

    def branch(block: nn.Module, returned: list[Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def passed(features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            features, tokens = attend_with_relay(block, features, tokens)
            returned.append(tokens)
            return features, tokens

        return passed

    def run(rule: str) -> Outputs:
        returned: list[Tensor] = []
        scales = TwoScales(
            case.tensors["in.tokens_local"][:, None], case.tensors["in.tokens_global"][:, None], tokens
        )
        scales = RELAY_UPDATES[RULES[rule]](branch(first, returned), branch(second, returned), scales)
        return {
            "tokens_local_out": scales.local,
            "tokens_global_out": scales.context,
            "relay_out": scales.relay_tokens,
            "relay_after_global": returned[0],
        }

    return run


def swinv2_sizes(arguments: dict, dim: int, window: list[int]) -> SwinV2Sizes:
    trained = arguments.get("pretrained_window_size", 0)
    return SwinV2Sizes(
        dim, arguments["num_heads"], tuple(window), arguments["mlp_ratio"], arguments["layer_norm_eps"],
        (trained, trained) if trained else None,
    )  # fmt: skip


def run_swin_block(case: GoldenCase, attention: str, _folder: Path) -> Callable[[str], Outputs]:
    """One block on one crop, to which no rule applies."""
    arguments, features = case.description["constructor"], case.tensors["in.feat"]
    block = SwinV2Block(
        config(attention), swinv2_sizes(arguments, arguments["dim"], [arguments["window_size"]] * 2)
    ).eval()
    fill(block, flat_scales(SWINV2_BLOCK.apply(case.weights)))
    windows = plan_windows(tuple(features.shape[1:-1]), tuple(arguments["effective_window"]))
    windows = windows._replace(shift=tuple(arguments["effective_shift"]))
    cut = ShiftedWindows(windows, padded_shift_masks(windows, features.device, features.dtype))

    def run(_rule: str) -> Outputs:
        tokens = relay_tokens(case, features)
        found = dict(
            zip(
                ["attn_feat", "attn_relay_window_mean"],
                block.mix_within_windows(features, tokens, cut),
                strict=True,
            )
        )
        found["feat_out"], found["relay_out"] = block(features, tokens, cut)
        return found

    return run


def run_swin_stage(case: GoldenCase, attention: str, _folder: Path) -> Callable[[str], Outputs]:
    """One stage on both crops, and the merging before it."""
    arguments, tokens = case.description["constructor"], relay_tokens(case, case.tensors["in.feat_local"])
    sizes = swinv2_sizes(arguments, arguments["out_dim"], [arguments["window_size"]] * 2)
    rates = (0.0,) * arguments["depth"]
    stages = {rule: RelayStage(config(attention), sizes, rates, name).eval() for rule, name in RULES.items()}
    parts = nn.ModuleDict({"blocks": stages["seq"].blocks})
    if arguments["downsample"]:
        eps = arguments["layer_norm_eps"]
        parts["merge"] = RelayMerge(
            arguments["dim"], eps, has_relay_tokens=bool(arguments["num_relay_tokens"])
        )
    fill(parts, flat_scales(SWINV2_STAGE.apply(case.weights)))
    stages["mean"].load_state_dict(stages["seq"].state_dict())
    relays = Relays("relay_after_block{}", "relay_after_block{}")
    for stage in stages.values():
        relays.watch(stage.blocks, lambda output: output[1])

    def run(rule: str) -> Outputs:
        scales = TwoScales(case.tensors["in.feat_local"], case.tensors["in.feat_global"], tokens)
        entering = parts["merge"](scales) if "merge" in parts else scales
        left = stages[rule](entering)
        return {
            "relay_projected": entering.relay_tokens,
            "feat_local_out": left.local,
            "feat_global_out": left.context,
            "relay_out": left.relay_tokens,
            **relays.take(rule),
        }

    return run


def run_segmenter(case: GoldenCase, attention: str, folder: Path) -> Callable[[str], Outputs]:
    """A whole segmenter that was converted to a folder."""
    convert_weights("relay-official", case.folder / "weights.safetensors", folder, case.folder / "case.json")

    def run(rule: str) -> Outputs:
        model = RelayForSemanticSegmentation.from_pretrained(
            folder, relay_update=RULES[rule], attn_implementation=attention
        )
        encoder, crops = model.backbone.encoder, (case.tensors["in.local"], case.tensors["in.global"])
        found: Outputs = {}
        relays = watch_encoder(encoder, found)
        encoded = encoder(*crops)
        for record in relays:
            found.update(record.take(rule))
        for crop, features in (("local", encoded.local), ("global", encoded.context)):
            found[f"tokens_{crop}_in"] = found[f"patch_embed_{crop}"] = features[0]
            found[f"tokens_{crop}_out"] = features[-1]
            found.update(
                {f"feat_{crop}_after_stage{stage}": level for stage, level in enumerate(features[1:])}
            )
        outputs = model.backbone(*crops)
        found["relay_in"] = encoder.relay_tokens(encoded.local[0])
        found["feat_local_out"], found["feat_global_out"] = outputs.feature_maps[-1], outputs.context_maps[-1]
        found["logits_local"] = model(crops[0], context_values=crops[1]).logits
        found["logits_global"] = model.context_logits(outputs.context_maps)
        return found

    return run


def watch_encoder(encoder: nn.Module, found: Outputs) -> list[Relays]:
    """Records the relay tokens after each block, and after each widening between stages."""
    if not hasattr(encoder, "stages"):
        count = encoder.relay_tokens(torch.zeros(1, 1)).shape[1]
        relays = Relays("relay_after_block{}", "relay_after_block{}")
        relays.watch(encoder.blocks, lambda output: output[:, :count])
        if encoder.context_blocks is not None:
            relays.watch(encoder.context_blocks, lambda output: output[:, :count])
        return [relays]
    for index, merge in enumerate(encoder.merges, 1):
        merge.register_forward_hook(
            lambda _, __, output, index=index: found.update(
                {f"stage{index}_relay_projected": output.relay_tokens}
            )
        )
    everything = []
    for index, stage in enumerate(encoder.stages):
        relays = Relays(f"stage{index}_relay_after_block{{}}", f"relay_after_stage{index}_block{{}}")
        relays.watch(stage.blocks, lambda output: output[1])
        everything.append(relays)
    return everything


KINDS = {
    "vit_block": run_vit_block,
    "swin_block": run_swin_block,
    "swin_stage": run_swin_stage,
    "vit_seg": run_segmenter,
    "swin_seg": run_segmenter,
}
CASES = [case for case in golden_cases("relay") if case.id == "none" or case.values[0].kind in KINDS]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_outputs_are_the_authors_under_both_rules(case, attention, tmp_path):
    check_rules(case, KINDS[case.kind](case, attention, tmp_path))
