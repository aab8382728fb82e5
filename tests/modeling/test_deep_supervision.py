"""The loss of volumes: labels at several resolutions."""

import pytest
import torch

from contextseg.modeling.deep_supervision import deep_supervision_loss, nearest_labels
from contextseg.modeling.losses import LOSS_TERMS, segmentation_loss


def test_targets_of_odd_sides_lie_at_two_i_plus_one():
    labels = torch.arange(7).reshape(1, 7, 1, 1)
    assert nearest_labels(labels, (3, 1, 1)).flatten().tolist() == [1, 3, 5]


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="must be .*slices, height, width.*one class id per"):
        deep_supervision_loss([torch.zeros(1, 2, 3, 4, 5)], torch.zeros(1, 1, 3, 4, 5).long(), [1.0])


@pytest.mark.parametrize("term", LOSS_TERMS)
def test_each_resolution_has_the_loss_of_its_own_labels(term):
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (torch.randn(2, 3, *size, generator=generator) for size in ((9, 8, 8), (4, 4, 4)))
    labels = torch.randint(0, 3, (2, 9, 8, 8), generator=generator)
    labels[:, 2:] = 1  # so that boundaries are somewhere, not everywhere
    expected = 0.75 * segmentation_loss(fine, labels, terms=term)
    expected += 0.25 * segmentation_loss(coarse, labels[:, 1::2, 1::2, 1::2], terms=term)
    torch.testing.assert_close(
        deep_supervision_loss([fine, coarse], labels, [0.75, 0.25], terms=term), expected
    )
