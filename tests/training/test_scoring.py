"""Scores of whole images."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from contextseg.processing.metrics import ConfusionMatrix
from contextseg.training.scoring import count


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_scored_in_evaluation_mode_and_goes_back_to_its_own(is_training):
    modes, model = [], nn.Module().train(is_training)
    model.device = torch.device("cpu")

    def mask(model, _inputs, size):
        modes.append(model.training)
        return torch.zeros(size, dtype=torch.int64)

    images = [{"labels": torch.zeros(2, 3, dtype=torch.int64), "inputs": []}] * 2
    confusion = ConfusionMatrix(1)
    count(model, images, [confusion], SimpleNamespace(mask=mask))
    assert (modes, model.training, confusion.matrix.item()) == ([False, False], is_training, 12)
