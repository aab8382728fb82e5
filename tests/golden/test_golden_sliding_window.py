"""Segmentation of volumes in windows against that of the nnFormer authors (nnU-Net's), with their toy network."""

from types import SimpleNamespace

import pytest
import torch
from golden_cases import golden_cases
from torch import nn

from contextseg.processing.inference import Inference
from contextseg.processing.tiling import even_starts, impulse_weights
from contextseg.processing.volumes.volume_inference import volume_probabilities

CASES = [
    case for case in golden_cases("nnformer") if case.id == "none" or case.values[0].kind == "sliding_window"
]


class ToyNetwork(nn.Module):
    """logits = Conv3d(x) + pos, and pos tells the places in a window apart."""

    device, dtype, config = torch.device("cpu"), torch.float32, SimpleNamespace()

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, pixel_values):
        conv = {name.rsplit(".", 1)[-1]: value for name, value in self.weights.items() if "pos" not in name}
        (pos,) = (value for name, value in self.weights.items() if "pos" in name)
        return SimpleNamespace(logits=nn.functional.conv3d(pixel_values, **conv, padding=1) + pos)


def probabilities(case, image, **options):
    constructor = case.description["constructor"]
    how = Inference(tuple(constructor["patch_size"]), 1 - constructor["step_size"], **options)
    bands = list(volume_probabilities(ToyNetwork(case.weights), image, how))
    return torch.cat([band.probabilities for band in bands], bands[0].axis + 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_probabilities_are_those_of_the_authors(case, batch_size):
    outputs = [name for name in case.tensors if name.startswith("out.prob_")]
    assert outputs
    for name in outputs:
        _, image, views = name.removeprefix("out.").split("_")
        mine = probabilities(case, case.tensors[f"image_{image}"], flip=views == "tta", batch_size=batch_size)
        torch.testing.assert_close(mine, case.tensors[name], atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_windows_and_their_weights_are_those_of_the_authors(case):
    constants = {
        name.removeprefix("const."): value for name, value in case.tensors.items() if "const." in name
    }
    window = case.description["constructor"]["patch_size"]
    torch.testing.assert_close(impulse_weights(window), constants["gaussian"])
    real = impulse_weights((64, 128, 128))
    torch.testing.assert_close(real[:, 64, 64], constants["gaussian_real_axis0"])
    torch.testing.assert_close(real[32, :, 64], constants["gaussian_real_axis1"])
    sums = torch.stack([real.double().sum(), real.double().min()])
    torch.testing.assert_close(sums, constants["gaussian_real_sum"], rtol=1e-5, atol=0)
    steps = [name for name in constants if name.startswith("steps_")]
    for name in steps:
        _, size, axis = name.split("_")
        k = int(axis.removeprefix("axis"))
        assert even_starts(int(size.split("x")[k]), (64, 128, 128)[k], 0.5) == constants[name].tolist()
