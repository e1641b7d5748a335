"""Faults are undone without a trace: weights, optimizer, recipe and random numbers go back."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.faults import FaultKind, FaultyObjective
from tests.training.conftest import STABILITY, TERNARY, TRAIN, toy_model
from tests.training.test_fit import rows

from trilith.files import remove
from trilith.model import ModelConfig, Transformer
from trilith.quant import BitLinear, QuantConfig
from trilith.reporting.curves import read_run
from trilith.training import stability
from trilith.training.batches import Batch
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import Loss, next_token_objective

FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)
LEARNED = QuantConfig("ternary", "learned", "row", None, 8)
# Without a cut and with the same batch at every step, a fault leaves no trace at all.
NO_CUT = replace(TRAIN, stability=replace(STABILITY, lr_factor=1.0))


class SameBatch:
    """Gives the first batch at every position."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def batch(self, position: int) -> Batch:
        return self.source.batch(0)


def noisy_objective(model: Transformer, batch: Batch) -> Loss:
    """An objective that draws from every random generator."""
    loss = next_token_objective(model, batch)
    if not model.training:
        return loss
    factor = 1 + 0.1 * (float(torch.rand(())) + random.random() + np.random.rand())
    return Loss(loss.total * factor, loss.nats)


def faulty(plan: Plan, *steps: int, kind: FaultKind = "nan_gradient") -> Plan:
    faults = dict.fromkeys(steps, kind)
    return plan._replace(objective=FaultyObjective(plan.objective, faults, seed=0))


def events(place: RunPlace) -> list[tuple[int, str]]:
    return [(int(row["step"]), row["kind"]) for row in rows(place.metrics_dir / "events.csv")]


def trained(toy: ModelConfig, plan: Plan, place: RunPlace, **settings: Any) -> Transformer:
    model = toy_model(toy, settings.get("quant", TERNARY))
    fit(model, plan=plan, config=settings.get("config", NO_CUT), place=place)
    remove(place.resume_dir)
    return model


def assert_same_weights(one: Transformer, other: Transformer) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize(
    ("changed", "quant"),
    [
        ({}, None),
        ({}, FITTED),
        ({"optimizer": "muon"}, TERNARY),
        # The second fault goes back into a dense phase, or to its very end.
        ({"dense_share": 0.55}, FITTED),
        ({"dense_share": 0.55}, TERNARY),
        ({"dense_share": 0.6}, FITTED),
        ({"dense_share": 0.6}, LEARNED),
        ({"dense_share": 0.4, "ramp_share": 0.3}, FITTED),
    ],
)
def test_a_rollback_leaves_no_trace(
    toy: ModelConfig,
    plan: Plan,
    place: RunPlace,
    changed: dict[str, Any],
    quant: QuantConfig | None,
    delay: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit: the fault at step 3 goes back to an optimizer without a state."""
    monkeypatch.setattr(stability, "check_delay", lambda device: delay)
    own = plan._replace(
        recipe=replace(plan.recipe, **changed),
        objective=noisy_objective,
        batches=SameBatch(plan.batches),
    )
    clean = trained(toy, own, place, quant=quant)
    assert events(place) == []
    second = 15 if changed.get("dense_share") == 0.55 and not delay else 16
    spoiled = trained(toy, faulty(own, 3, second), place, quant=quant)
    assert_same_weights(clean, spoiled)
    back = [row for row in rows(place.metrics_dir / "events.csv") if row["kind"] == "rollback"]
    assert [int(row["step"]) for row in back] == [3 + delay, second + delay]
    lost = sum(int(row["step"]) - int(row["detail"].split()[-1]) for row in back)
    steps = rows(place.metrics_dir / "steps.csv")
    assert len(steps) == plan.num_steps + lost
    assert rows(place.metrics_dir / "validation.csv")[-1]["step"] == steps[-1]["step"]


def test_the_rate_is_cut_recovers_and_follows_the_recipe(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    """The fault at step 13 goes back to the snapshot after step 10: three steps are lost."""
    trained(toy, faulty(plan, 13), place, config=TRAIN)
    assert events(place) == [(13, "spike"), (13, "rollback"), (13, "lr_cut")]
    rates = {int(row["step"]): float(row["lr"]) for row in rows(place.metrics_dir / "steps.csv")}
    assert len(rates) == 23
    for step in range(1, 24):
        lost = 3 if step > 13 else 0
        share = min(1.0, 0.5 + 0.5 * (step - 14) / 4) if lost else 1.0
        expected = share * plan.recipe.learning_rate(step - 1 - lost, plan.num_steps)
        assert rates[step] == pytest.approx(expected), step


def test_a_long_ramp_to_the_grid_is_watched_too(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    recipe = replace(plan.recipe, dense_share=0.3, ramp_share=0.5)
    own = faulty(plan._replace(num_steps=40, recipe=recipe), 25, kind="exploding_batch")
    trained(toy, own, place, quant=FITTED, config=TRAIN)
    assert events(place) == [(25, "spike"), (25, "rollback"), (25, "lr_cut")]


def test_a_rollback_to_where_the_loss_was_higher_is_no_spike(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    """To the very start, and to a snapshot that is nearly a whole interval old."""
    config = replace(TRAIN, stability=replace(STABILITY, snapshot_every=40))
    own = faulty(plan._replace(num_steps=60), 39, 78, kind="exploding_batch")
    trained(toy, own, place, config=config)
    spikes = [step for step, kind in events(place) if kind == "spike"]
    assert spikes == [39, 78]


@pytest.mark.parametrize(
    ("rows_of", "factor", "signal"),
    [(slice(3, 4), 1e-3, "scale_jump"), (slice(None), 3.0, "zero_drift")],
)
def test_a_fault_that_only_the_codes_show_is_caught_when_they_are_measured(
    toy: ModelConfig, plan: Plan, place: RunPlace, rows_of: slice, factor: float, signal: str
) -> None:
    """Fitted scales are no weights, so that neither checksum nor update size sees them."""
    calls = 0

    def spoiling(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += model.training
        loss = next_token_objective(model, batch)
        if model.training and calls == 60:
            for layer in model.modules():
                if isinstance(layer, BitLinear):
                    layer.scale[rows_of] *= factor
        return loss

    own = plan._replace(num_steps=70, objective=spoiling)
    trained(toy, own, place, quant=FITTED, config=TRAIN)
    spikes = [row for row in rows(place.metrics_dir / "events.csv") if row["kind"] == "spike"]
    assert [(row["step"], row["detail"].split(":")[0]) for row in spikes] == [("60", signal)]


def test_the_batches_of_a_fault_are_not_read_again(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    class Watched(SameBatch):
        positions: list[int] = []  # noqa: RUF012

        def batch(self, position: int) -> Batch:
            self.positions.append(position)
            return self.source.batch(position)

    watched = Watched(plan.batches)
    trained(toy, faulty(plan._replace(batches=watched), 13), place)
    assert watched.positions == list(range(23))


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("stop", [11, 14])
def test_a_run_stopped_after_a_rollback_ends_with_the_same_bits(
    toy: ModelConfig,
    plan: Plan,
    place: RunPlace,
    delay: int,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stability, "check_delay", lambda device: delay)
    whole = trained(toy, faulty(plan, 7), place, config=TRAIN)
    expected = rows(place.metrics_dir / "events.csv")
    num_calls = 0

    def stopping(model: Transformer, batch: Batch) -> Loss:
        nonlocal num_calls
        num_calls += model.training
        if num_calls == stop:
            raise RuntimeError("stopped")
        return next_token_objective(model, batch)

    with pytest.raises(RuntimeError, match="stopped"):
        broken = faulty(plan._replace(objective=stopping), 7)
        fit(toy_model(toy), plan=broken, config=TRAIN, place=place)
    resumed = trained(toy, plan, place, config=TRAIN)
    assert rows(place.metrics_dir / "events.csv") == expected
    assert_same_weights(whole, resumed)


def test_a_fault_that_a_checkpoint_holds_unchecked_is_seen_after_the_resume(
    toy: ModelConfig, plan: Plan, place: RunPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late check has not yet seen step 15 when the checkpoint after it is written."""
    monkeypatch.setattr(stability, "check_delay", lambda device: 1)

    def dying(model: Transformer, batch: Batch) -> Loss:
        if model.training and objective.num_steps == 16:
            raise RuntimeError("died")
        return next_token_objective(model, batch)

    objective = FaultyObjective(dying, {15: "nan_gradient"}, seed=0)
    with pytest.raises(RuntimeError, match="died"):
        fit(toy_model(toy), plan=plan._replace(objective=objective), config=TRAIN, place=place)
    assert events(place) == []
    resumed = trained(toy, plan, place, config=TRAIN)
    assert events(place) == [(15, "spike"), (16, "rollback"), (16, "lr_cut")]
    assert all(torch.isfinite(tensor).all() for tensor in resumed.state_dict().values())


def test_a_run_that_stays_unstable_stops_with_a_diagnosis(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    told = r"unstable: 2 rollbacks .* not_finite at steps 5, 6, 7 \(last: .*lower recipe\.peak_lr"
    with pytest.raises(ValueError, match=told):
        fit(toy_model(toy), plan=faulty(plan, *range(5, 40)), config=TRAIN, place=place)
    kinds = [kind for _, kind in events(place)]
    assert kinds.count("rollback") == 2
    assert kinds[-2:] == ["spike", "stop"]


def test_every_event_is_counted_in_the_metrics(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    spoiled = faulty(plan, 12, 17, kind="flipped_bit")
    metrics = fit(toy_model(toy), plan=spoiled, config=TRAIN, place=place)
    counts = {k: v for k, v in metrics.items() if k.startswith("stability/") and v}
    assert counts == {
        "stability/num_spikes": 2,
        "stability/num_rollbacks": 2,
        "stability/num_foreign_change": 2,
    }


def test_a_fault_in_the_last_step_is_undone_and_spoils_no_metric(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    spoiled = faulty(plan, 20, kind="exploding_batch")
    metrics = fit(toy_model(toy), plan=spoiled, config=TRAIN, place=place)
    assert metrics["stability/num_rollbacks"] == 1
    assert metrics["train/loss_nats"] < 4.0
    run = read_run(place.metrics_dir, metrics={}, made_by="pretrain")
    assert [(event.step, event.kind) for event in run.events] == events(place)


def test_the_jump_at_the_end_of_a_dense_phase_is_no_spike(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    calls = 0

    def jumping(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += model.training
        loss = next_token_objective(model, batch)
        return Loss(loss.total, loss.nats + 10.0 * (calls > 15))

    config = replace(TRAIN, stability=replace(STABILITY, max_rollbacks=1))
    jump = plan._replace(objective=jumping)
    with pytest.raises(ValueError, match="loss at steps 16, 17"):
        trained(toy, jump, place, config=config)
    remove(place.resume_dir)
    calls = 0
    recipe = replace(plan.recipe, dense_share=0.75)
    trained(toy, jump._replace(recipe=recipe), place, config=config)
    assert events(place) == []
