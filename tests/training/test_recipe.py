"""Recipes: rates and decays at the steps where they turn, and what AdamW decays."""

from dataclasses import replace
from typing import Any

import pytest

from trilith.model import ModelConfig, build_model
from trilith.training.recipe import Recipe, build_optimizer

COSINE = Recipe(
    optimizer="adamw",
    schedule="cosine",
    peak_lr=1.0,
    warmup_steps=10,
    final_lr_share=0.1,
    decay_share=None,
    second_stage_lr_share=None,
    weight_decay=0.1,
    second_half_weight_decay=0.0,
    beta1=0.9,
    beta2=0.95,
    clip_norm=1.0,
    dense_share=0.0,
    ramp_steps=0,
    z_loss=0.0,
)
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
        ({"dense_share": 1.0}, "recipe.dense_share=1.0"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(COSINE, **changes)


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
