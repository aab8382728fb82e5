"""The loss of volumes: nnFormer's Dice and cross-entropy at several resolutions."""

import pytest
import torch
from golden_cases import golden_cases

from contextseg.modeling.deep_supervision import (
    check_volume_terms,
    deep_supervision_loss,
    nearest_labels,
    volume_loss,
)

TERMS = "cross_entropy+foreground_dice"


def only(parameter):
    return parameter.values[0] is None or parameter.values[0].folder.name.startswith("loss_deep_supervision")


@pytest.mark.parametrize("case", [case for case in golden_cases("nnformer") if only(case)])
def test_losses_are_the_authors(case):
    levels = range(len(case.tensors["weights"]))
    outputs = [case.tensors[f"logits{level}"] for level in levels]
    labels, weights = case.tensors["target0"][:, 0].long(), case.tensors["weights"].tolist()
    for level in levels:
        targets = case.tensors[f"target{level}"][:, 0].long()
        assert torch.equal(nearest_labels(labels, targets.shape[1:]), targets)
    batch = deep_supervision_loss(outputs, labels, weights, terms=TERMS)
    case.check("out.total_batch_dice", batch - sum(weights))  # the authors' Dice term has no 1
    samples = [
        deep_supervision_loss([logits[[index]] for logits in outputs], labels[[index]], weights, terms=TERMS)
        for index in range(len(labels))
    ]
    case.check("out.total_sample_dice", torch.stack(samples).mean() - sum(weights))
    case.check("out.ce", torch.stack([
        volume_loss(logits, nearest_labels(labels, logits.shape[2:])) for logits in outputs
    ]))  # fmt: skip
    case.check("out.dice_batch_dice", torch.stack([
        volume_loss(logits, nearest_labels(labels, logits.shape[2:]), terms="foreground_dice") - 1
        for logits in outputs
    ]))  # fmt: skip


def test_the_gradient_of_foreground_dice_is_that_of_its_definition():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 3, 4, 5))
    logits = torch.randn(2, 4, 3, 4, 5, requires_grad=True)  # the last class does not occur
    volume_loss(logits, labels, terms="foreground_dice").backward()
    found, logits.grad = logits.grad, None
    probability, is_class = logits.softmax(1)[:, 1:], torch.stack([labels == k for k in (1, 2, 3)], dim=1)
    axes = (0, 2, 3, 4)
    overlap, total = (probability * is_class).sum(axes), probability.sum(axes) + is_class.sum(axes)
    (1 - (2 * overlap + 1e-5) / (total + 1e-5 + 1e-8)).mean().backward()
    torch.testing.assert_close(found, logits.grad)


def test_targets_of_odd_sides_lie_at_two_i_plus_one():
    labels = torch.arange(7).reshape(1, 7, 1, 1)
    assert nearest_labels(labels, (3, 1, 1)).flatten().tolist() == [1, 3, 5]


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="must be .*one class id per voxel"):
        deep_supervision_loss([torch.zeros(1, 2, 3, 4, 5)], torch.zeros(1, 1, 3, 4, 5).long(), [1.0])


def test_terms_of_images_are_refused():
    with pytest.raises(ValueError, match="'boundary' is for images only"):
        check_volume_terms("dice+0.5*boundary")
