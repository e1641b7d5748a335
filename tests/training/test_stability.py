"""Spikes are seen, undone and counted; clean losses are left alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import STABILITY, TRAIN, toy_model
from tests.training.test_fit import rows

from trilith.files import remove
from trilith.model import ModelConfig, Transformer
from trilith.quant import QuantConfig
from trilith.training.batches import Batch
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import Loss, next_token_objective
from trilith.training.stability import SpikeDetector


def spoiling(steps: set[int], *, factor: float) -> Any:
    """An objective whose loss is multiplied at the given calls, gradient included."""
    calls = 0

    def objective(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = next_token_objective(model, batch)
        if calls not in steps:
            return loss
        return Loss(loss.total * factor, loss.nats * factor)

    return objective


def test_no_alarm_in_ten_thousand_falling_noisy_losses() -> None:
    detector = SpikeDetector(STABILITY)
    noise = np.random.default_rng(0).normal(0, 0.15, 10_000)
    for step, wobble in enumerate(noise):
        assert detector.check(2.0 + 6.0 * math.exp(-step / 300) + wobble, 1.0) is None


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)]
)
def test_what_is_not_finite_is_bad_at_the_first_step(loss: float, grad_norm: float) -> None:
    assert SpikeDetector(STABILITY).check(loss, grad_norm) is not None


def test_a_jump_is_bad_and_does_not_enter_the_window() -> None:
    detector = SpikeDetector(STABILITY)
    for step in range(20):
        assert detector.check(3.0 + 0.1 * (step % 3), 1.0) is None
    assert "sigmas above" in str(detector.check(6.0, 1.0))
    assert "sigmas above" in str(detector.check(6.0, 1.0))
    assert detector.check(3.1, 1.0) is None


@pytest.mark.parametrize("factor", [math.nan, 1e4])
def test_a_spike_is_rolled_back_to_the_snapshot_and_the_rate_cut(
    toy: ModelConfig, plan: Plan, place: RunPlace, factor: float
) -> None:
    model = toy_model(toy)
    spoiled = plan._replace(objective=spoiling({13}, factor=factor))
    metrics = fit(model, plan=spoiled, config=TRAIN, place=place)
    events = [(row["step"], row["kind"]) for row in rows(place.metrics_dir / "events.csv")]
    assert events == [("13", "spike"), ("13", "rollback"), ("13", "lr_cut")]
    assert metrics["stability/num_rollbacks"] == 1
    rates = {int(row["step"]): float(row["lr"]) for row in rows(place.metrics_dir / "steps.csv")}
    for step, share in ((13, 1.0), (14, 0.5), (15, 0.625), (17, 0.875), (18, 1.0)):
        expected = plan.recipe.learning_rate(step - 1, plan.num_steps)
        assert rates[step] == pytest.approx(share * expected), step
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert metrics["train/loss_nats"] < 4.0


def test_weights_after_a_rollback_are_those_of_the_snapshot(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    """Snapshots are taken before steps 0, 5, 10: a spike at the last step leaves those of 10."""
    short = plan._replace(num_steps=13, objective=spoiling({13}, factor=math.nan))
    spoiled = toy_model(toy)
    fit(spoiled, plan=short, config=TRAIN, place=place)
    remove(place.resume_dir)
    seen: dict[int, Any] = {}

    def watching(model: Transformer, batch: Batch) -> Loss:
        if model.training:
            seen[len(seen)] = {k: v.clone() for k, v in model.state_dict().items()}
        return next_token_objective(model, batch)

    fit(toy_model(toy), plan=short._replace(objective=watching), config=TRAIN, place=place)
    for name, tensor in seen[10].items():
        assert torch.equal(tensor, spoiled.state_dict()[name]), name


def test_scales_are_fitted_after_a_rollback_to_the_end_of_the_dense_phase(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    fitted = QuantConfig("ternary", "least_squares", "row", None, 8)
    model = toy_model(toy, fitted)
    layer = model.blocks[0].mlp.up
    spoil = spoiling({13}, factor=math.nan)
    scales: list[torch.Tensor] = []

    def watching(model: Transformer, batch: Batch) -> Loss:
        scales.append(layer.scale.clone())
        return spoil(model, batch)

    # The dense phase ends with step 10, the spike at step 13 goes back to just there.
    recipe = replace(plan.recipe, dense_share=0.5)
    fit(model, plan=plan._replace(objective=watching, recipe=recipe), config=TRAIN, place=place)
    assert "to the state of step 10" in str(rows(place.metrics_dir / "events.csv"))
    # Calls 11 and 14 are the first on the grid, before and after: the weights are the same.
    assert torch.equal(scales[13], scales[10])
    assert not torch.equal(scales[10], scales[9])


def test_a_run_that_stays_unstable_stops_with_a_diagnosis(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    hopeless = plan._replace(objective=spoiling(set(range(5, 99)), factor=math.nan))
    with pytest.raises(ValueError, match=r"unstable: at step 7 .* after 2 rollbacks"):
        fit(toy_model(toy), plan=hopeless, config=TRAIN, place=place)
    kinds = [row["kind"] for row in rows(place.metrics_dir / "events.csv")]
    assert kinds.count("rollback") == 2
    assert kinds[-1] == "stop"


def test_the_jump_at_the_end_of_a_dense_phase_is_no_spike(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    calls = 0

    def jumping(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += model.training
        loss = next_token_objective(model, batch)
        return Loss(loss.total, loss.nats + 10.0 * (calls > 15))

    recipe = replace(plan.recipe, dense_share=0.75)
    for own, is_spike in ((replace(recipe, dense_share=0.0), True), (recipe, False)):
        calls = 0
        config = replace(TRAIN, stability=replace(STABILITY, max_rollbacks=99))
        jump = plan._replace(objective=jumping, recipe=own)
        metrics = fit(toy_model(toy), plan=jump, config=config, place=place)
        assert (metrics["stability/num_spikes"] > 0) == is_spike
        remove(place.resume_dir)
