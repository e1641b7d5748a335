"""A run learns, records what it did, and goes on exactly where it was stopped."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import TERNARY, TRAIN, toy_model
from torch.nn import functional as F

from trilith.files import remove
from trilith.model import ModelConfig, Transformer
from trilith.quant import BitLinear, QuantConfig, fit_scale
from trilith.training.batches import Batch
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import Loss, next_token_objective


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def stopping_at(step: int, error: type[BaseException]) -> Any:
    """An objective that fails at the given call."""
    calls = 0

    def objective(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        if calls == step:
            raise error
        return next_token_objective(model, batch)

    return objective


@pytest.mark.parametrize("quant", [None, TERNARY], ids=["dense", "ternary"])
def test_the_loss_falls_and_every_step_is_recorded(
    toy: ModelConfig, plan: Plan, place: RunPlace, quant: Any
) -> None:
    metrics = fit(toy_model(toy, quant), plan=plan, config=TRAIN, place=place)
    steps = rows(place.metrics_dir / "steps.csv")
    losses = [float(row["loss_nats"]) for row in steps]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert [int(row["step"]) for row in steps] == list(range(1, 21))
    assert [int(row["tokens"]) for row in steps] == [64 * step for step in range(1, 21)]
    assert metrics["train/num_tokens"] == 20 * 64
    assert all(float(row["mfu"]) > 0 and float(row["grad_norm"]) > 0 for row in steps)
    assert ("quant/zero_share" in metrics) == (quant is TERNARY)
    validations = rows(place.metrics_dir / "validation.csv")
    assert [int(row["step"]) for row in validations] == [10, 20]
    assert metrics["validation/loss_nats"] == float(validations[-1]["loss_nats"])
    assert rows(place.metrics_dir / "events.csv") == []


def test_every_validation_is_that_of_the_model_at_its_step(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    model = toy_model(toy)
    fit(model, plan=plan, config=TRAIN, place=place)
    losses = []
    for position in range(TRAIN.validation_batches):
        inputs, targets, _ = plan.validation.batch(position)
        losses.append(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))
    first, last = rows(place.metrics_dir / "validation.csv")
    expected = float(torch.stack(losses).detach().mean())
    assert float(last["loss_nats"]) == pytest.approx(expected, abs=1e-5)
    assert float(first["loss_nats"]) != float(last["loss_nats"])


def test_the_last_step_is_validated_whatever_the_interval(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    model = toy_model(toy)
    metrics = fit(model, plan=plan._replace(num_steps=13), config=TRAIN, place=place)
    validations = rows(place.metrics_dir / "validation.csv")
    assert [int(row["step"]) for row in validations] == [10, 13]
    with torch.no_grad():
        batches = [plan.validation.batch(position) for position in range(2)]
        losses = [float(next_token_objective(model, batch).nats) for batch in batches]
    assert metrics["validation/loss_nats"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_the_recorded_rate_is_the_recipes(toy: ModelConfig, plan: Plan, place: RunPlace) -> None:
    fit(toy_model(toy), plan=plan, config=TRAIN, place=place)
    for row in rows(place.metrics_dir / "steps.csv"):
        expected = plan.recipe.learning_rate(int(row["step"]) - 1, plan.num_steps)
        assert float(row["lr"]) == pytest.approx(expected)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_run_ends_with_the_same_bits(
    toy: ModelConfig,
    plan: Plan,
    place: RunPlace,
    error: type[BaseException],
    accumulate: int,
) -> None:

    config = replace(TRAIN, accumulate=accumulate)
    whole = toy_model(toy)
    fit(whole, plan=plan, config=config, place=place)
    expected = [row["loss_nats"] for row in rows(place.metrics_dir / "steps.csv")]
    remove(place.resume_dir)
    broken = plan._replace(objective=stopping_at(13 * accumulate, error))
    with pytest.raises(error):
        fit(toy_model(toy), plan=broken, config=config, place=place)
    resumed = toy_model(toy)
    fit(resumed, plan=plan, config=config, place=place)
    assert [row["loss_nats"] for row in rows(place.metrics_dir / "steps.csv")] == expected
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_dense_phase_is_dense_to_the_bit_and_ends_on_the_grid(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    half = plan._replace(recipe=replace(plan.recipe, dense_share=0.5))
    losses = {}
    for name, quant, own in (("dense", None, plan), ("ternary", TERNARY, half)):
        model = toy_model(toy, quant)
        fit(model, plan=own, config=TRAIN, place=place)
        losses[name] = [row["loss_nats"] for row in rows(place.metrics_dir / "steps.csv")]
        remove(place.resume_dir)
    assert losses["dense"][:10] == losses["ternary"][:10]
    assert all(a != b for a, b in zip(losses["dense"][10:], losses["ternary"][10:], strict=True))
    shares = {layer.quantized_share for layer in model.modules() if isinstance(layer, BitLinear)}
    assert shares == {1.0}


def test_scales_are_fitted_anew_when_a_dense_phase_ends(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    fitted = QuantConfig("ternary", "least_squares", "row", None, 8)
    model = toy_model(toy, fitted)
    layer = model.blocks[0].mlp.up
    seen: list[bool] = []

    def watching(model: Transformer, batch: Batch) -> Loss:
        if model.training and layer.quantized_share == 1 and not seen:
            # Refined once more, which moves the last bits.
            seen.append(torch.allclose(layer.scale, fit_scale(layer.weight, fitted), rtol=1e-5))
        return next_token_objective(model, batch)

    own = plan._replace(objective=watching, recipe=replace(plan.recipe, dense_share=0.5))
    fit(model, plan=own, config=TRAIN, place=place)
    steps = rows(place.metrics_dir / "steps.csv")
    assert seen == [True]
    assert not any(row["zero_share"] for row in steps[:10])
    assert steps[19]["zero_share"]
