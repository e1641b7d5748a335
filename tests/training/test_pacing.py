"""Layers that move to the grid one group after another: when, with which scales, after a stop."""

from dataclasses import replace

import pytest
import torch
from tests.training.conftest import RECIPE, STABILITY, TRAIN, toy_model
from tests.training.test_fit import stopping_at

from trilith.model import ModelConfig, Transformer, move_to_grid
from trilith.quant import BitLinear, QuantConfig
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import LanguageModule, next_token_objective, start_quantized_step
from trilith.training.pacing import Pace, hold_back, paced

PRIME7 = QuantConfig("prime7", "least_squares", "row", None, 8)
TERNARY = QuantConfig("ternary", "least_squares", "row", None, 8)
NUM_STEPS = 20


def layers(model: Transformer) -> dict[str, BitLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}


def held_back(toy: ModelConfig, before: QuantConfig | None) -> tuple[Transformer, Pace]:
    """A model of which the first layers have moved, half of the others move at step 5 and 10."""
    earlier = move_to_grid(toy_model(toy, None), before)
    model = move_to_grid(earlier, TERNARY)
    names = list(layers(model))
    groups = [names[:2], names[2:5], names[5:]]
    pace = Pace(before, TERNARY, paced(groups, num_steps=NUM_STEPS, move_share=0.75))
    hold_back(model, earlier, pace)
    return model, pace


def test_groups_follow_each_other_at_equal_distances() -> None:
    moves = paced([["a"], ["b", "c"], ["d"]], num_steps=12, move_share=0.5)
    assert moves == {"a": 0, "b": 2, "c": 2, "d": 4}


@pytest.mark.parametrize("before", [None, PRIME7])
def test_a_layer_waits_where_it_was_and_is_fitted_when_it_moves(
    toy: ModelConfig, before: QuantConfig | None
) -> None:
    model, pace = held_back(toy, before)
    assert sorted(set(pace.move_steps.values())) == [0, 5, 10]
    for step in range(12):
        start_quantized_step(model, step=step, num_steps=NUM_STEPS, recipe=RECIPE, pace=pace)
        for name, layer in layers(model).items():
            has_moved = step >= pace.move_steps[name]
            assert layer.quantized_share == (1.0 if has_moved or before else 0.0)
            if has_moved or before:
                assert layer.config == (TERNARY if has_moved else before)
            if step == pace.move_steps[name] > 0:
                fresh = move_to_grid(model, TERNARY).get_submodule(name)
                assert layer.scale is not None and isinstance(fresh, BitLinear)
                assert torch.equal(layer.scale, fresh.scale)
    assert not pace.is_complete(9) and pace.is_complete(10)


def test_before_its_first_step_a_waiting_layer_has_its_earlier_scales(toy: ModelConfig) -> None:
    earlier = move_to_grid(toy_model(toy, None), PRIME7)
    model, pace = held_back(toy, PRIME7)
    before = layers(earlier)
    for name, layer in layers(model).items():
        assert layer.scale is not None
        assert torch.equal(layer.scale, before[name].scale) == (pace.move_steps[name] > 0)


@pytest.mark.parametrize("before", [None, PRIME7])
@pytest.mark.parametrize("stop", [6, 11])
def test_a_stopped_run_goes_on_to_the_same_bits(
    toy: ModelConfig, plan: Plan, place: RunPlace, before: QuantConfig | None, stop: int
) -> None:
    noisy = replace(RECIPE, latent_noise=0.1)
    config = replace(TRAIN, stability=replace(STABILITY, spike_sigmas=1e9), checkpoint_every=4)
    whole, pace = held_back(toy, before)
    paced_plan = plan._replace(recipe=noisy, pace=pace)
    fit(
        whole,
        plan=paced_plan,
        config=config,
        place=place._replace(resume_dir=place.resume_dir / "a"),
    )
    broken = paced_plan._replace(objective=stopping_at(stop, RuntimeError))
    with pytest.raises(RuntimeError):
        fit(held_back(toy, before)[0], plan=broken, config=config, place=place)
    resumed = held_back(toy, before)[0]
    fit(resumed, plan=paced_plan, config=config, place=place)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert {layer.config for layer in layers(resumed).values()} == {TERNARY}


def test_nothing_is_best_while_layers_still_move(toy: ModelConfig) -> None:
    model, pace = held_back(toy, PRIME7)
    module = LanguageModule(
        model, objective=next_token_objective, recipe=RECIPE, num_steps=NUM_STEPS, pace=pace
    )
    told = []
    for step in range(13):
        module.num_lost_steps = -step
        told.append(module.is_on_grid)
    # After ten steps the last one was number 9, which did not see all layers on the grid.
    assert told == [False] * 11 + [True] * 2
