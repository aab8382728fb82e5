"""The models of the recipes have the numbers of parameters and multiply-adds that the papers print, or say why not."""

from functools import cache

import pytest
import torch
from cases import slow_but
from torch.utils.flop_counter import FlopCounterMode

from contextseg.training import setup
from contextseg.training.options import train_arguments
from contextseg.training.recipe_cards import count_parameters
from contextseg.training.recipes import read_recipe, recipe_names, with_recipe
from contextseg.training.tasks import task_for

PAPERS = {name: read_recipe(name).paper for name in recipe_names()}
PRINTED = [name for name, paper in PAPERS.items() if "parameters-in-millions" in paper]
COUNTED = [name for name, paper in PAPERS.items() if "multiply-adds-in-billions" in paper]
TOLERANCE = 0.01
# As printed, and for SegDeformer on DeiT as the authors' code builds them, which the paper does not print.
EXACT = {
    "upernet_deit_small_ade20k": 52_093_868,
    "upernet_deit_base_ade20k": 120_574_508,
    "segdeformer_deit_small_upernet_ade20k": 54_878_124,
    "segdeformer_deit_base_upernet_ade20k": 123_358_764,
    "segdeformer_mit_b1_ade20k": 14_453_590,
    "segdeformer_mit_b2_ade20k": 25_498_454,
    "segdeformer_mit_b5_ade20k": 82_745_174,
    "segformer_mit_b1_ade20k": 13_716_822,
    "segformer_mit_b5_ade20k": 82_008_406,
    "swin_upernet_small_ade20k": 81_259_766,
    "upernet_swin_large_ade20k": 233_962_976,
    "semantic_fpn_swin_large_640_ade20k": 203_648_330,
}
ALWAYS = ["upernet_deit_small_ade20k", "segdeformer_deit_small_upernet_ade20k", "maformer_small_imagenet1k"]


def fits(found, printed):
    """Whether a number is within the tolerance, or rounds to what is printed."""
    decimals = len(str(printed).partition(".")[2])
    return abs(found / printed - 1) <= TOLERANCE or round(found, decimals) == printed


def agrees(found, name, key, reason):
    """The recipe gives a reason for a difference if, and only if, there is one."""
    return fits(found, PAPERS[name][key]) != (reason in PAPERS[name])


def arguments_of(name):
    return train_arguments(with_recipe({"recipe": name})[0])


@pytest.mark.parametrize("name", slow_but(PRINTED, *ALWAYS))
def test_a_recipe_builds_the_printed_number_of_parameters_or_says_why_not(name):
    found = count_parameters(arguments_of(name), PAPERS[name]["classes"])
    assert agrees(found / 1e6, name, "parameters-in-millions", "parameters-differ")
    assert found == EXACT.get(name, found)


def test_the_exact_numbers_are_those_of_the_papers():
    """Except for SegDeformer's own rows, which no count of the authors' code gives."""
    for name, found in EXACT.items():
        if not name.startswith("segdeformer"):
            assert round(found / 1e6, 2) == pytest.approx(PAPERS[name]["parameters-in-millions"], abs=1e-9)


def model_of(name):
    task = task_for(arguments_of(name))
    with torch.device("meta"):
        return setup.new_model(task, task.generated(PAPERS[name]["classes"])).eval()


def multiply_adds(model, height, width):
    """Billions of multiply-adds by kind of operation, on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width))
    return {str(operation): count / 2e9 for operation, count in counter.get_flop_counts()["Global"].items()}


def without_padding(encoder, side, window):
    """Multiply-adds at a size that the windows do not divide, as if they did: the linear and the quadratic part in the
    number of pixels follow from two sizes that they divide."""
    small, large = (window * 64, window * 128)
    at_small, at_large = (
        sum(multiply_adds(encoder, size, size).values()) / size**2 for size in (small, large)
    )
    quadratic = (at_large - at_small) / (large**2 - small**2)
    return side**2 * (at_small + quadratic * (side**2 - small**2))


@cache
def counted(name):
    what = PAPERS[name]["multiply-adds-of"]
    model = model_of(name)
    if what.startswith("the encoder alone"):
        window = 12 if "large" in name else 7
        return without_padding(model.backbone, 512, window)
    if "without the products of attention" in what:
        return sum(value for kind, value in multiply_adds(model, 512, 2048).items() if "bmm" not in kind)
    return sum(multiply_adds(model, 224, 224).values())


@pytest.mark.parametrize("name", slow_but(COUNTED, "cswin_tiny_imagenet1k"))
def test_a_recipe_needs_the_printed_number_of_multiply_adds_or_says_why_not(name):
    assert agrees(counted(name), name, "multiply-adds-in-billions", "multiply-adds-differ")


@pytest.mark.slow
def test_with_the_global_attention_that_nothing_reads_glam_needs_the_printed_number():
    found = counted("glam_swin_upernet_base_ade20k")
    for stage in range(
        4
    ):  # the last block of each: the tokens' own attention in windows, and that of all tokens
        dim, tokens = 128 * 2**stage, 10 * (512 / 4 / 2**stage / 7) ** 2
        in_windows = 2 * dim**2 + 2 * (49 + 10) * dim
        found += tokens * (in_windows + 4 * dim**2 + 2 * tokens * dim) / 1e9
    assert fits(found, 99)


@pytest.mark.slow
def test_swin_large_with_windows_of_seven_needs_the_printed_number():
    from contextseg import GlamSwinBackbone, GlamSwinConfig

    sizes = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
    with torch.device("meta"):
        encoder = GlamSwinBackbone(GlamSwinConfig(**sizes, num_global_tokens=0))
    assert fits(without_padding(encoder, 512, 7), 180)
