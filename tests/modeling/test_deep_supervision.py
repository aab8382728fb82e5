"""The loss of volumes: labels at several resolutions."""

import pytest
import torch

from contextseg.modeling.deep_supervision import (
    check_volume_terms,
    deep_supervision_loss,
    nearest_labels,
)


def test_targets_of_odd_sides_lie_at_two_i_plus_one():
    labels = torch.arange(7).reshape(1, 7, 1, 1)
    assert nearest_labels(labels, (3, 1, 1)).flatten().tolist() == [1, 3, 5]


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="must be .*one class id per voxel"):
        deep_supervision_loss([torch.zeros(1, 2, 3, 4, 5)], torch.zeros(1, 1, 3, 4, 5).long(), [1.0])


def test_terms_of_images_are_refused():
    with pytest.raises(ValueError, match="'boundary' is for images only"):
        check_volume_terms("dice+0.5*boundary")
