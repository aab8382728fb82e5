"""Segmentation of volumes in windows against that of the nnFormer authors (nnU-Net's), with their toy network."""

import re
from types import SimpleNamespace

import pytest
import torch
from golden_cases import cases_of_kind
from torch import nn

from contextseg.processing.inference import Inference
from contextseg.processing.tiling import even_starts, impulse_weights
from contextseg.processing.volumes.volume_inference import volume_probabilities

CASES = cases_of_kind("nnformer", "sliding_window")


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
        image, views = name.removeprefix("out.prob_").rsplit("_", 1)
        mine = probabilities(case, case.tensors[f"image_{image}"], flip=views == "tta", batch_size=batch_size)
        torch.testing.assert_close(mine, case.tensors[name], atol=case.tolerance, rtol=0)


def stated(case, name):
    """What the meaning of a constant states in brackets, each time as a tuple of whole numbers."""
    found = re.findall(r"[(\[]([\d, ]+)[)\]]", case.meaning(name))
    return [tuple(int(number) for number in numbers.split(",")) for numbers in found]


@pytest.mark.parametrize("case", CASES)
def test_weights_of_windows_are_those_of_the_authors(case):
    constants = case.starting("const.gaussian")
    assert constants
    real = impulse_weights(stated(case, "const.gaussian_real_axis0")[-1]) if len(constants) > 1 else None
    for name, expected in constants.items():
        if not name:
            mine = impulse_weights(tuple(case.description["constructor"]["patch_size"]))
        elif name == "_real_sum":
            mine = torch.stack([real.double().sum(), real.double().min()])
        else:
            axis = int(name.removeprefix("_real_axis"))
            center = [slice(None) if k == axis else side // 2 for k, side in enumerate(real.shape)]
            mine = real[tuple(center)]
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_windows_start_where_those_of_the_authors_do(case):
    for name, starts in case.starting("const.steps_").items():
        axis = int(name.rsplit("axis", 1)[1])
        image, patch = stated(case, f"const.steps_{name}")
        step = float(re.search(r"step ([\d.]+)", case.meaning(f"const.steps_{name}"))[1])
        assert even_starts(image[axis], patch[axis], 1 - step) == starts.tolist()
