"""A hundred injected faults through whole training runs: all caught within one step, and undone."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.faults import FAULT_KINDS, HIGH_BITS, FaultKind, FaultyObjective, flip_bit
from tests.training.conftest import STABILITY, TRAIN, pattern, toy_model
from tests.training.test_fit import rows

from trilith.files import remove
from trilith.model import ModelConfig
from trilith.quant import QuantConfig
from trilith.training import stability
from trilith.training.batches import TokenWindows
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import next_token_objective

FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)
CONFIG = replace(
    TRAIN,
    stability=replace(STABILITY, max_rollbacks=99),
    validate_every=200,
    checkpoint_every=10_000,
)
NUM_STEPS = 200
NUM_FAULTS = 20
# Before it the windows are too short to know what is usual, and the loss is that of chance.
FIRST_FAULT = 50


@pytest.fixture
def long_plan(plan: Plan) -> Plan:
    windows = TokenWindows(pattern(6000), context=16, batch_size=4, seed=0)
    return plan._replace(num_steps=NUM_STEPS, batches=windows)


def faults_of(kind: FaultKind) -> dict[int, FaultKind]:
    """Attempted steps at random distances."""
    draw = random.Random(kind)
    steps = [FIRST_FAULT]
    while len(steps) < NUM_FAULTS:
        steps.append(steps[-1] + draw.randint(2, 9))
    return dict.fromkeys(steps, kind)


def train(toy: ModelConfig, plan: Plan, place: RunPlace, faults: dict[int, FaultKind]) -> Any:
    objective = FaultyObjective(next_token_objective, faults, seed=0)
    model = toy_model(toy, FITTED)
    metrics = fit(model, plan=plan._replace(objective=objective), config=CONFIG, place=place)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    remove(place.resume_dir)
    return metrics


def caught_steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder / "events.csv") if row["kind"] == "spike"]


CLEAN_LOSS = pytest.StashKey[float]()


@pytest.fixture
def clean_loss(
    toy: ModelConfig, long_plan: Plan, place: RunPlace, pytestconfig: pytest.Config
) -> float:
    """Validation loss of the run without faults; trained once for all tests here."""
    if CLEAN_LOSS not in pytestconfig.stash:
        metrics = train(toy, long_plan, place, {})
        assert metrics["stability/num_spikes"] == 0
        pytestconfig.stash[CLEAN_LOSS] = metrics["validation/loss_nats"]
    return pytestconfig.stash[CLEAN_LOSS]


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_twenty_faults_of_a_kind_are_caught_within_one_step(
    toy: ModelConfig, long_plan: Plan, place: RunPlace, kind: FaultKind, clean_loss: float
) -> None:
    """Each at the very step where it strikes, and nothing else; then the loss is as without.

    Tolerance: the loss falls by 3.5 nats from chance; twenty cuts of the learning rate within 200
    steps are worth less than 3% of that either way.
    """
    faults = faults_of(kind)
    metrics = train(toy, long_plan, place, faults)
    assert caught_steps(place.metrics_dir) == list(faults)
    assert metrics["stability/num_rollbacks"] == NUM_FAULTS
    assert metrics["validation/loss_nats"] == pytest.approx(clean_loss, abs=0.1)


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_a_late_check_catches_one_step_later(
    toy: ModelConfig,
    long_plan: Plan,
    place: RunPlace,
    kind: FaultKind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where the host never waits for a step; the last step is checked at once."""
    monkeypatch.setattr(stability, "check_delay", lambda device: 1)
    short = long_plan._replace(num_steps=75)
    # The snapshot after step 55 holds its fault; with 8 lost steps 83 becomes the last one.
    faults: dict[int, FaultKind] = {55: kind, 61: kind, 83: kind}
    train(toy, short, place, faults)
    events = [(int(row["step"]), row["kind"]) for row in rows(place.metrics_dir / "events.csv")]
    assert [step for step, event in events if event == "spike"] == list(faults)
    assert [step for step, event in events if event == "rollback"] == [56, 62, 83]


@pytest.mark.parametrize("seed", range(20))
def test_a_flip_of_a_high_bit_is_one_bit_of_one_value(seed: int) -> None:
    weight = torch.randn(5, 7)
    before = weight.clone().view(torch.int32)
    flip_bit(weight, torch.Generator().manual_seed(seed))
    changed = (weight.view(torch.int32) ^ before).flatten()
    assert changed[changed != 0].tolist() in [[1 << bit] for bit in HIGH_BITS]
