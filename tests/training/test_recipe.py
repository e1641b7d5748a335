"""Recipes: rates and decays at the steps where they turn, and what AdamW decays."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from tests.training.conftest import RECIPE

from trilith.model import ModelConfig, build_model
from trilith.training.recipe import Recipe, build_optimizer

COSINE = replace(RECIPE, peak_lr=1.0, warmup_steps=10)
WSD = replace(COSINE, schedule="wsd", decay_share=0.2)
TWO_STAGE = replace(COSINE, schedule="two_stage", second_stage_lr_share=0.4, final_lr_share=0.0)


@pytest.mark.parametrize(
    ("recipe", "step", "expected"),
    [
        (COSINE, 0, 0.1),
        (COSINE, 9, 1.0),
        (COSINE, 10, 1.0),
        (COSINE, 60, 0.55),
        (COSINE, 110, 0.1),
        (WSD, 50, 1.0),
        (WSD, 90, 1.0),
        (WSD, 100, 0.55),
        (WSD, 110, 0.1),
        (TWO_STAGE, 35, 0.75),
        (TWO_STAGE, 60, 0.4),
        (TWO_STAGE, 85, 0.2),
        (TWO_STAGE, 110, 0.0),
    ],
)
def test_the_rate_turns_where_the_schedule_says(recipe: Recipe, step: int, expected: float) -> None:
    assert recipe.learning_rate(step, 110) == pytest.approx(expected)


def test_wider_models_take_a_lower_rate() -> None:
    recipe = replace(COSINE, reference_width=160)
    assert recipe.at_width(64).peak_lr == recipe.at_width(160).peak_lr == COSINE.peak_lr
    assert recipe.at_width(640).learning_rate(10, 110) == pytest.approx(
        COSINE.learning_rate(10, 110) / 4
    )
    assert COSINE.at_width(640) == COSINE


def test_weight_decay_changes_at_mid_run() -> None:
    assert [COSINE.decay(step, 110) for step in (0, 54, 55, 109)] == [0.1, 0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "recipe.optimizer='sgd' is not known"),
        ({"schedule": "linear"}, "recipe.schedule='linear' is not known"),
        ({"decay_share": 0.2}, "recipe.decay_share=0.2 with schedule=cosine"),
        ({"schedule": "wsd"}, "recipe.decay_share=None with schedule=wsd"),
        ({"schedule": "two_stage"}, "recipe.second_stage_lr_share=None"),
        ({"schedule": "wsd", "decay_share": 1.5}, "must lie in"),
        ({"peak_lr": 0.0}, "recipe.peak_lr=0.0"),
        ({"peak_lr": math.nan}, "recipe.peak_lr=nan must be positive and finite"),
        ({"peak_lr": math.inf, "weight_decay": 0.0}, "recipe.peak_lr=inf"),
        ({"reference_width": 0}, "recipe.reference_width=0 must be at least 1"),
        ({"warmup_steps": -1}, "recipe.warmup_steps=-1 must not be negative"),
        ({"final_lr_share": -0.1}, r"recipe.final_lr_share=-0.1 must lie in \[0, 1\]"),
        ({"final_lr_share": 1.1}, "recipe.final_lr_share=1.1"),
        ({"final_lr_share": math.nan}, "recipe.final_lr_share=nan"),
        ({"schedule": "wsd", "decay_share": 0.0}, "must lie in"),
        ({"schedule": "wsd", "decay_share": math.nan}, "must lie in"),
        ({"schedule": "two_stage", "second_stage_lr_share": -1.0}, "must lie in"),
        ({"weight_decay": -0.1}, "recipe.weight_decay=-0.1 must not be negative"),
        ({"weight_decay": math.nan}, "recipe.weight_decay=nan"),
        ({"second_half_weight_decay": -1.0}, "recipe.second_half_weight_decay=-1.0"),
        ({"weight_decay": 1.5}, "times weight decay 1.5 is above 1"),
        ({"second_half_weight_decay": 1.5}, "times weight decay 1.5 is above 1"),
        ({"beta1": 1.0}, r"recipe.beta1=1.0 must lie in \[0, 1\)"),
        ({"beta1": -0.1}, "recipe.beta1=-0.1"),
        ({"beta2": math.nan}, "recipe.beta2=nan"),
        ({"clip_norm": 0.0}, "recipe.clip_norm=0.0 must be positive"),
        ({"clip_norm": math.nan}, "recipe.clip_norm=nan"),
        ({"dense_share": 1.0}, "recipe.dense_share=1.0"),
        ({"dense_share": math.nan}, "recipe.dense_share=nan"),
        ({"ramp_share": -0.1}, "recipe.ramp_share=-0.1"),
        ({"z_loss": math.nan}, "recipe.z_loss=nan"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(COSINE, **changes)


def test_no_field_of_a_recipe_takes_what_is_no_number() -> None:
    for field in fields(Recipe):
        if isinstance(getattr(COSINE, field.name), float | int):
            with pytest.raises(ValueError, match=f"recipe.{field.name}=nan"):
                replace(COSINE, **{field.name: math.nan})


def test_a_warmup_may_last_as_long_as_the_run_and_no_longer() -> None:
    COSINE.check_length(10)
    with pytest.raises(ValueError, match="warmup_steps=10 are more than the 9 steps"):
        COSINE.check_length(9)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_projections_decay(toy: ModelConfig, optimizer: Any) -> None:
    model = build_model(toy, None)
    recipe = replace(COSINE, optimizer=optimizer)
    decaying, others = build_optimizer(model, recipe).param_groups
    assert (decaying["decays"], others["decays"]) == (True, False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in decaying["params"]} == {"qkv", "out", "up", "down"}
    assert {names[id(p)] for p in others["params"]} >= {"embedding.weight", "norm.weight"}
    assert len(names) == len(decaying["params"]) + len(others["params"])


def test_weights_stay_dense_then_go_to_the_grid_in_equal_steps() -> None:
    recipe = replace(COSINE, dense_share=0.3, ramp_share=0.2)
    shares = [recipe.quantized_share(step, 20) for step in range(20)]
    assert shares[:6] == [0.0] * 6
    assert shares[6:10] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert shares[10:] == [1.0] * 10
    at_once = [replace(recipe, ramp_share=0.0).quantized_share(step, 20) for step in range(20)]
    assert at_once == [0.0] * 6 + [1.0] * 14


def test_a_run_must_end_on_the_grid() -> None:
    replace(COSINE, dense_share=0.5, ramp_share=0.45).check_length(20)
    with pytest.raises(ValueError, match=r"ramp_share=0\.6 leave no step of 20 on the grid"):
        replace(COSINE, dense_share=0.5, ramp_share=0.6).check_length(20)
