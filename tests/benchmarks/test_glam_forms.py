"""The forms of global tokens that are compared."""

import pytest
import torch

from contextseg.benchmarks.form_networks import START, new_model


@pytest.mark.slow
@pytest.mark.parametrize("path", ["bare", "half", "transformer"])
@pytest.mark.parametrize("positions", ["table", "sines"])
def test_positions_reach_the_logits_and_learn_on_every_path(path, positions):
    torch.manual_seed(0)
    plain = new_model(path, "none", 0.02, size=64, weights_std=0.15).eval()
    torch.manual_seed(0)
    placed = new_model(path, positions, 0.02, size=64, weights_std=0.15).eval()
    images = torch.randn(1, 3, 64, 64)
    logits = placed(pixel_values=images).logits
    assert not torch.equal(plain(pixel_values=images).logits, logits)
    logits.square().sum().backward()
    learned = [each for name, each in placed.named_parameters() if "position." in name and "bias" not in name]
    assert len(learned) == 1
    assert learned[0].detach().std() == pytest.approx(START, rel=0.3)
    assert learned[0].grad.abs().sum() > 0
