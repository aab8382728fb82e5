"""Losses of relay tokens, with their gradients, and heads against tensors of the authors' code."""

import pytest
import torch
from golden_cases import GoldenCase, golden_cases
from torch import Tensor

from contextseg.modeling.decoder_transposed import ProgressiveDecoder
from contextseg.modeling.label_rows import TransposedClassifier
from contextseg.modeling.losses import segmentation_loss
from contextseg.modeling.renaming import fill
from contextseg.modeling.scale_losses import center, class_shares, scale_losses
from contextseg.scripts.conversion.relay_official import HEAD


def cases_of(kind: str) -> list:
    return [case for case in golden_cases("relay") if case.id == "none" or case.values[0].kind == kind]


def losses_and_parts(case: GoldenCase) -> dict[str, Tensor]:
    """Every output of a case of losses, from its logits and labels; a case stores no part of a loss without weight."""
    given, tensors = case.description["constructor"], case.tensors
    local, context = (tensors[f"in.logits_{crop}"].clone().requires_grad_() for crop in ("local", "global"))
    ignored, ratio = given["ignore_index"], given["factor_extent"] // given["factor_pixels"]
    options = {"ratio": ratio, "ignore_index": ignored, "overlap": given["overlap"]}
    sides = tensors["out.cropped_labels"].shape[1:]
    cells = [side // ratio for side in sides]
    kept, labels = center(local, *sides), center(tensors["in.labels"], *sides)
    shares = class_shares(labels, local.shape[1], ratio, ignored)
    losses = scale_losses(local, context, tensors["in.labels"], **options)
    local_loss = segmentation_loss(kept, labels, ignore_index=ignored)
    weights = given["w_global"], given["w_consistency"]
    total = local_loss + weights[0] * losses.context + weights[1] * losses.consistency
    total.backward()
    footprint = center(context, *cells)
    return {
        "loss_local": local_loss,
        "loss_global": losses.context,
        "loss_consistency": losses.consistency,
        "loss_total": total,
        "grad_logits_local": local.grad,
        "grad_logits_global": context.grad,
        "probs_local": kept.softmax(1),
        "cropped_logits_local": kept,
        "cropped_labels": labels,
        "global_soft_target_masked": shares,
        "global_logits_masked": footprint * shares.any(1, keepdim=True),
        "consistency_logits": footprint,
        "consistency_soft_target": torch.nn.functional.avg_pool2d(kept.softmax(1), ratio),
    }


@pytest.mark.parametrize("case", cases_of("losses"))
def test_losses_and_gradients_are_the_authors(case):
    tolerance, ours = case.description["tolerance"], losses_and_parts(case)
    stored = {name.removeprefix("out.") for name in case.tensors if name.startswith("out.")}
    assert stored <= ours.keys()
    for name in stored:
        tensor = ours[name]
        atol = tolerance["gradients_max_abs" if name.startswith("grad") else "max_abs"]
        torch.testing.assert_close(
            tensor.detach(),
            case.tensors[f"out.{name}"],
            rtol=0,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("case", cases_of("seg_head"))
@torch.no_grad()
def test_logits_of_a_head_are_the_authors(case):
    given, features = case.description["constructor"], case.tensors["in.feat"]
    stride, channels = given["downsample_factor"], given["embed_dim"]
    factor = given["decoder_stride"]
    decoder = ProgressiveDecoder(channels, stride, factor)  # without a step if the factor is the stride
    classifier = TransposedClassifier(decoder.out_channels, given["num_classes"], factor, factor)
    head = torch.nn.ModuleDict({"decoder": decoder, "classifier": classifier})
    fill(head, HEAD.apply(case.weights))
    case.check("out.logits", head.eval()["classifier"](decoder([features]).feature_map))
