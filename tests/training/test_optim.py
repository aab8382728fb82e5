import pytest
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation

import contextseg
from contextseg.training.optim import (
    ModelEma,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)


@pytest.fixture(scope="module")
def model():
    config = contextseg.GlamSwinConfig.preset("nano", depths=(2, 2), num_heads=(1, 2), embed_dim=8)
    return AutoModelForSemanticSegmentation.from_config(config)


def decay_by_name(model, **options):
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.01, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


def test_every_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.01)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())


def test_norms_biases_tokens_and_position_tables_do_not_decay(model):
    decay = decay_by_name(model)
    free = ("bias", "norm", "global_tokens", "token_code", "position_bias")
    expected = {name: 0.0 if any(part in name for part in free) else 0.01 for name in decay}
    assert decay == expected
    assert {0.0, 0.01} == set(decay.values())


def test_mmsegmentations_rule_decays_all_but_layer_norms_and_positions(model):
    decay = decay_by_name(model, decay_of="all-but-norms")
    layer_norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    free = {name for name in decay if name.rpartition(".")[0] in layer_norms or "position_bias" in name}
    assert decay == {name: 0.0 if name in free else 0.01 for name in decay}
    decayed = decay.keys() - free
    assert {name.rpartition(".")[2] for name in decayed} > {"weight", "bias"}  # and global tokens
    assert any("decoder" in name and ".norm." in name for name in decayed)  # batch norms


def test_all_parameters_decay_on_request(model):
    assert set(decay_by_name(model, decay_of="all").values()) == {0.01}


def test_the_head_factor_applies_to_all_but_the_backbone(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, learning_rate=2.0, weight_decay=0.0, factors={"head": 10.0}):
        is_backbone = {names[id(parameter)].startswith("backbone.") for parameter in group["params"]}
        assert is_backbone == {group["lr"] == 2.0}


def test_a_factor_by_name_multiplies_the_learning_rate_of_the_parameters_it_names(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.0, factors={"global_tokens": 5.0})
    named = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert named == {name: 5.0 if "global_tokens" in name else 1.0 for name in named}


def test_a_factor_that_fits_no_parameter_fails(model):
    with pytest.raises(ValueError, match="no parameter name contains 'gobal'"):
        parameter_groups(model, learning_rate=1.0, weight_decay=0.0, factors={"gobal": 5.0})


def test_poly_falls_on_a_straight_line_to_zero_after_the_last_step():
    factors = [learning_rate_factor(step, steps=4, warmup_steps=0, schedule="poly") for step in range(5)]
    assert factors == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine_is_at_half_height_in_the_middle():
    assert learning_rate_factor(50, steps=100, warmup_steps=10, schedule="cosine") == pytest.approx(0.5)


def test_the_warm_up_rises_linearly_and_never_starts_at_zero():
    rising = [learning_rate_factor(step, steps=100, warmup_steps=4, schedule="constant") for step in range(6)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_groups_keep_their_ratio_when_the_rate_changes():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [
        {"params": [p], "lr": lr, "initial_lr": lr} for p, lr in zip(parameters, (1.0, 3.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    for factor in (0.5, 0.1):
        set_learning_rate(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.3])


def test_the_average_follows_the_weights_by_its_decay():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = ModelEma(layer, decay=0.1)
    nn.init.ones_(layer.weight)
    average.update(layer)
    assert average.weights["weight"].item() == pytest.approx(0.9)


def test_a_young_average_forgets_its_start_faster_than_its_decay_says():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = ModelEma(layer, decay=0.9999)
    nn.init.ones_(layer.weight)
    for _ in range(100):
        average.update(layer)
    assert average.weights["weight"].item() > 0.99


def test_running_statistics_and_counters_are_copied_into_the_average():
    norm = nn.BatchNorm1d(2)
    average = ModelEma(norm, decay=0.9)
    norm(torch.randn(8, 2))
    average.update(norm)
    assert torch.equal(average.weights["running_mean"], norm.running_mean)
    assert average.weights["num_batches_tracked"] == 1


def test_the_average_takes_the_weights_place_inside_its_block_only():
    layer = nn.Linear(2, 2)
    own = layer.weight.detach().clone()
    average = ModelEma(layer, decay=0.5)
    average.weights["weight"] += 1
    with average.in_place_of(layer):
        assert torch.equal(layer.weight, own + 1)
    assert torch.equal(layer.weight, own)


def test_a_step_schedule_falls_to_a_tenth_at_each_milestone():
    factors = [
        learning_rate_factor(step, steps=12, warmup_steps=2, schedule="step", milestones=(8, 11))
        for step in range(12)
    ]
    expected = [1 / 3, 2 / 3, *[1.0] * 6, *[0.1] * 3, 0.01]
    assert factors == pytest.approx(expected)


def test_the_rate_falls_to_its_floor_and_stays_there_while_it_cools_down():
    settings = {"steps": 100, "warmup_steps": 0, "schedule": "poly", "cooldown_steps": 20, "floor": 0.1}
    rates = [learning_rate_factor(step, **settings) for step in (0, 40, 80, 99)]
    assert rates == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_the_first_step_of_an_average_keeps_two_elevenths_of_the_start():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = ModelEma(layer, decay=0.999)
    nn.init.ones_(layer.weight)
    average.update(layer)
    assert average.weights["weight"].item() == pytest.approx(9 / 11)


def test_an_average_continues_from_the_given_number_of_steps():
    layer = nn.Linear(1, 1)
    average = ModelEma(layer, decay=0.9)
    average.begin(layer, steps=5)
    average.update(layer)
    assert average.steps == 6


def test_frozen_parameters_are_in_no_group():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers.base_model_prefix = "0"
    layers[0].requires_grad_(False)
    groups = parameter_groups(layers, learning_rate=1.0, weight_decay=0.1)
    kept = {id(parameter) for group in groups for parameter in group["params"]}
    assert kept == {id(parameter) for parameter in layers[1].parameters()}
