"""SegDeformer's decoder against tensors of the authors' code: attention, external mining, whole heads, a training step, losses.

Weights reach the modules through the product's conversion table. Every stored output, intermediate, gradient and batch-norm
buffer has to be accounted for. Our decoder never makes some of the intermediates (the mid-level queries, keys and
features); they are computed here from its weights and its own inputs.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, golden_cases
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from contextseg.modeling.attention import eager_attention_forward
from contextseg.modeling.context_mining import ExternalAttention, ExternalMining, InternalAttention
from contextseg.modeling.decoder_segdeformer import SegDeformerDecoder
from contextseg.modeling.external_tokens import LearnedTokens
from contextseg.modeling.losses import segmentation_loss
from contextseg.modeling.projections import project_jointly
from contextseg.modeling.renaming import fill
from contextseg.scripts.conversion.segdeformer_official import ATTENTION, EXTERNAL, HEAD, head_from_official

FIXED = {  # arguments that have one value in the authors' code, the only one that is built here
    "num_heads": 1,
    "qkv_bias": True,
    "align_corners": False,
    "interpolate_mode": "bilinear",
    "key_query_num_convs": 1,
    "value_out_num_convs": 1,
    "key_query_norm": True,
    "value_out_norm": True,
    "matmul_norm": True,
    "with_out": True,
    "share_key_query": False,
    "query_downsample": None,
    "key_downsample": None,
    "conv_bias": False,
}


class Recorder:
    """Queries, keys, values, scores and results of each attention, under the module that attends."""

    def __init__(self, monkeypatch) -> None:
        self.calls: dict[nn.Module, dict[str, Tensor]] = {}
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "recording", self.attend)
        self.config = SimpleNamespace(_attn_implementation="recording")

    def attend(self, module, query, key, value, attention_mask, scaling, **_):
        attended, probabilities = eager_attention_forward(module, query, key, value, attention_mask, scaling)
        parts = {"query": query, "key": key, "value": value}
        self.calls[module] = {name: part[:, 0] for name, part in parts.items()} | {
            "attn_logits": (query @ key.transpose(-1, -2) * scaling)[:, 0],
            "attn_probs": probabilities[:, 0],
            "context": attended[:, :, 0].transpose(1, 2),
        }
        return attended, probabilities


def arguments(case: GoldenCase) -> dict:
    """The case's arguments; those that are fixed here must have their value."""
    given = case.description["args"]
    for part in (given, given.get("cross_attention", {})):
        for name, value in FIXED.items():
            assert part.get(name, value) == value, f"{name}={part[name]}"
    return given


def tolerance(case: GoldenCase, name: str) -> dict[str, float]:
    """Of one tensor: suggestions are for all, or for kinds of tensors."""
    suggested = case.description["suggested_tolerance"]
    if "atol" in suggested:
        return suggested
    kind = "outputs"
    if name.startswith("grad") or "grad_" in name:
        kind = "gradients"
    elif name.startswith("after."):
        kind = "buffers"
    elif name.endswith("acc_seg"):
        kind = "acc_seg"
    elif "loss" in name and "losses" in suggested:
        kind = "losses"
    return {"rtol": 0.0, **suggested.get(kind, {"atol": 1e-4})}


def as_features(feature_map: Tensor) -> Tensor:
    return feature_map.permute(0, 2, 3, 1)


def as_map(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)


def mid_values(external: ExternalMining, features: Tensor) -> dict[str, Tensor]:
    """Eq. 6 as the authors compute it, step by step; ours has shorter ways."""
    class_tokens, info_tokens = external.tokens()
    (query,) = project_jointly(features, [external.q_proj()])
    query, key = query.flatten(1, 2), external.k_proj(class_tokens)
    probabilities = (query @ key.T * key.shape[-1] ** -0.5).softmax(-1)
    mid = (probabilities @ external.v_proj(info_tokens)).transpose(1, 2)
    return {
        "inter.mid_query": query,
        "inter.mid_key": key.expand(len(features), -1, -1),
        "inter.mid_probs": probabilities,
        "inter.x_mid": mid,
    }


def run_internal_attention(case: GoldenCase, recorder: Recorder) -> dict[str, Tensor]:
    attention = InternalAttention(recorder.config, arguments(case)["channels"], use_batch_norm=True).eval()
    fill(attention, head_from_official(case.weights, ATTENTION))
    attended, _ = attention(as_features(case.tensors["input.x"]))
    call = {f"inter.{name}": part for name, part in recorder.calls[attention].items()}
    return {"output.y": as_map(attended), **call}


def run_external_path(case: GoldenCase, recorder: Recorder) -> dict[str, Tensor]:
    dim, num_labels = arguments(case)["channels"], arguments(case)["num_classes"]
    attention = ExternalAttention(recorder.config, dim, use_batch_norm=True)
    tokens = LearnedTokens(num_labels, dim, decouple=True)
    external = ExternalMining(tokens, dim, use_batch_norm=True, attention=attention).eval()
    fill(external, head_from_official(case.weights, EXTERNAL))
    features = as_features(case.tensors["input.x"])
    attended, scores, _ = external(features, project_jointly(features, external.maps()))
    call = recorder.calls[attention]
    return {
        "output.mid_logits": as_map(scores),
        "output.y_exter": as_map(attended),
        **mid_values(external, features),
        **{f"inter.ext_{name}": call[name] for name in ("query", "key", "value", "context")},
    }


def build_head(case: GoldenCase, recorder: Recorder) -> nn.ModuleDict:
    given = arguments(case)
    assert given["in_index"] == list(range(len(given["in_channels"])))
    sizes = given["in_channels"], given["channels"], given["num_classes"]
    head = nn.ModuleDict(
        {
            "decoder": SegDeformerDecoder(recorder.config, *sizes, dropout=given["dropout_ratio"]),
            "classifier": nn.Conv2d(given["channels"], given["num_classes"], kernel_size=1),
        }
    )
    fill(head, head_from_official(case.weights))
    return head


def levels(case: GoldenCase) -> list[Tensor]:
    return [case.tensors[f"input.feat{level}"] for level in range(len(arguments(case)["in_channels"]))]


def run_head(case: GoldenCase, recorder: Recorder) -> dict[str, Tensor]:
    head = build_head(case, recorder).eval()
    decoder, found = head["decoder"], {}

    def record(name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: tuple, output: Tensor | tuple) -> None:
            output = output if isinstance(output, Tensor) else output[0]
            found[name] = output if name == "inter.fused" else as_map(output)

        module.register_forward_hook(keep)

    record("inter.fused", decoder.neck)
    record("inter.y_inter", decoder.internal.layers[0].attention)
    record("inter.y_exter", decoder.external)
    for index, projection in enumerate(decoder.neck.projections):
        record(f"inter.level{index}_projected", projection)
    decoded = decoder(levels(case))
    logits = head["classifier"](decoded.feature_map)
    size = tuple(case.description["image_size"])
    return found | {
        "output.logits": logits,
        "output.mid_logits": decoded.mid_logits,
        "output.logits_full": F.interpolate(logits, size, mode="bilinear", align_corners=False),
        "inter.x_mid": mid_values(decoder.external, as_features(found["inter.fused"]))["inter.x_mid"],
        "inter.augmented": decoded.feature_map,
    }


def label_losses(
    case: GoldenCase, logits: Tensor, mid_logits: Tensor, ignore_index: int, reduction: str = "all"
) -> list[Tensor]:
    """Of the logits and the mid-level scores, as `SegmentationModel.label_loss` computes them."""
    labels = case.tensors["input.labels"]
    return [
        segmentation_loss(scores, labels, ignore_index=ignore_index, reduction=reduction)
        for scores in (logits, mid_logits)
    ]


def run_head_train_step(case: GoldenCase, recorder: Recorder) -> dict[str, Tensor]:
    given = arguments(case)
    head = build_head(case, recorder).train()
    feature_maps = [level.clone().requires_grad_() for level in levels(case)]
    decoded = head["decoder"](feature_maps)
    logits = head["classifier"](decoded.feature_map)
    main, mid = label_losses(case, logits, decoded.mid_logits, given["ignore_index"])
    total = main + given["attention_loss_weight"] * mid
    total.backward()
    found = {
        "output.logits": logits,
        "output.mid_logits": decoded.mid_logits,
        "output.loss_seg": main,
        "output.loss_attn": mid,
        "output.loss_total": total,
    }
    found |= {f"grad.{name}": head.get_parameter(HEAD.rename(name)).grad for name in parameters(case)}
    found |= {f"grad_input.feat{index}": level.grad for index, level in enumerate(feature_maps)}
    found |= {f"after.{name}": head.get_buffer(HEAD.rename(name)) for name in buffers(case)}
    return found


def parameters(case: GoldenCase) -> list[str]:
    return [name for name in case.weights if not is_buffer(name)]


def buffers(case: GoldenCase) -> list[str]:
    return [name for name in case.weights if is_buffer(name)]


def is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def run_loss(case: GoldenCase, _: Recorder) -> dict[str, Tensor]:
    given, labels = arguments(case), case.tensors["input.labels"]
    maps = [case.tensors[f"input.{name}"].clone().requires_grad_() for name in ("logits", "mid_logits")]
    main, mid = label_losses(case, *maps, given["ignore_index"])
    total = given["seg_loss_weight"] * main + given["attention_loss_weight"] * mid
    total.backward()
    valid = label_losses(case, *maps, given["ignore_index"], reduction="valid")
    resized = F.interpolate(maps[0], labels.shape[1:], mode="bilinear", align_corners=False)
    return {
        "output.loss_seg": main,
        "output.loss_attn": mid,
        "output.loss_total": total,
        "output.grad_logits": maps[0].grad,
        "output.grad_mid_logits": maps[1].grad,
        "output.acc_seg": (resized.argmax(1) == labels).float().mean() * 100,
        "alt.loss_seg_valid_mean": valid[0],
        "alt.loss_attn_valid_mean": valid[1],
        "inter.resized_logits_sample": resized[0, 0],
    }


KINDS = {
    "internal_attention": run_internal_attention,
    "external_path": run_external_path,
    "head": run_head,
    "head_train_step": run_head_train_step,
    "loss": run_loss,
}


@pytest.mark.parametrize("case", golden_cases("segdeformer"))
def test_all_that_the_authors_code_computes_is_computed(case, monkeypatch):
    found = KINDS[case.kind](case, Recorder(monkeypatch))
    for name, expected in case.tensors.items():
        if not name.startswith("input."):
            ours = found[name].detach().reshape(expected.shape)
            torch.testing.assert_close(
                ours, expected, **tolerance(case, name), msg=lambda text, name=name: f"{name}: {text}"
            )
