"""Losses of nnFormer and of GLAM's trainer in volumes against tensors of the authors' code.

Theirs is minus the mean Dice, ours one minus it. Their Dice adds another 1e-8 below the line, which only counts for
classes without a voxel.
"""

import pytest
import torch
import torch.nn.functional as F
from golden_cases import cases_of_kind

from contextseg.modeling.deep_supervision import deep_supervision_loss, nearest_labels
from contextseg.modeling.losses import segmentation_loss

TERMS = {"batch_dice": "foreground_dice", "sample_dice": "foreground_dice_per_image"}


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("case", cases_of_kind("nnformer", "loss.*"))
def test_losses_of_nnformer_are_the_authors(case, kind):
    logits = list(dict(sorted(case.starting("logits").items())).values())
    labels = case.tensors["target0"][:, 0].long()
    targets = [nearest_labels(labels, level.shape[2:]) for level in logits]
    for level, target in enumerate(targets):
        assert torch.equal(target, case.tensors[f"target{level}"][:, 0].long())
    pairs = list(zip(logits, targets, strict=True))
    case.check("out.ce", torch.stack([segmentation_loss(*pair) for pair in pairs]))
    dice = torch.stack([segmentation_loss(*pair, terms=TERMS[kind]) for pair in pairs])
    case.check(f"out.dice_{kind}", dice - 1)
    terms = f"cross_entropy+{TERMS[kind]}"
    case.check(
        f"out.level_{kind}", torch.stack([segmentation_loss(*pair, terms=terms) for pair in pairs]) - 1
    )
    weights = case.tensors["weights"].tolist()
    total = deep_supervision_loss(logits, labels, weights, terms=terms)
    case.check(f"out.total_{kind}", total - sum(weights))


def soft_dice(logits, shares):
    """The authors' Dice with a target of shares: minus the mean over all classes but the first, over the batch."""
    probabilities, axes = logits.softmax(1), (0, 2, 3, 4)
    overlap = (probabilities * shares).sum(axes)
    total = probabilities.sum(axes) + shares.sum(axes)
    return -((2 * overlap + 1e-5) / (total + 1e-5 + 1e-8))[1:].mean()


@pytest.mark.parametrize("case", cases_of_kind("glam3d", "loss.*"))
def test_losses_of_glams_trainer_are_the_authors(case):
    """The coarser output has a target of its own: shares of classes, of which cross-entropy reads the first alone."""
    logits, labels = case.tensors["logits0"], case.tensors["target0"][:, 0].long()
    coarse, shares = case.tensors["logits1"], case.tensors["target1"]
    one_hot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
    pool = case.description["constructor"]["pool_kernels"][0]
    torch.testing.assert_close(F.avg_pool3d(one_hot, pool), shares)
    torch.testing.assert_close(
        segmentation_loss(logits, labels, terms="foreground_dice") - 1, soft_dice(logits, one_hot)
    )
    dice = torch.stack(
        [segmentation_loss(logits, labels, terms="foreground_dice") - 1, soft_dice(coarse, shares)]
    )
    ce = torch.stack([segmentation_loss(logits, labels), segmentation_loss(coarse, shares[:, 0].long())])
    case.check("out.dice", dice)
    case.check("out.ce", ce)
    case.check("out.level", dice + ce)
    case.check("out.total", ((dice + ce) * case.tensors["weights"][:2].float()).sum())
