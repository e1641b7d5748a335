"""The time and memory of each step: in the right part, over all micro-batches, in every row."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import TRAIN, toy_model
from tests.training.test_fit import rows
from torch.optim.optimizer import register_optimizer_step_post_hook

from trilith.files import STEP_PARTS
from trilith.model import ModelConfig, Transformer, training_flops_per_token
from trilith.training.batches import Batch, BatchSource
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import Loss, next_token_objective
from trilith.training.step_cost import memory_bytes

NAP_S = 0.05
TWICE = replace(TRAIN, accumulate=2)


class Clock:
    """A clock that only naps move, beside a microsecond each time somebody looks."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def look(self) -> float:
        self.now_s += 1e-6
        return self.now_s

    def nap(self, *_: Any) -> None:
        self.now_s += NAP_S

    def in_batches(self, source: BatchSource) -> BatchSource:
        return _SlowBatches(source, self)

    def in_forward(self, model: Transformer, batch: Batch) -> Loss:
        self.nap()
        return next_token_objective(model, batch)

    def in_backward(self, model: Transformer, batch: Batch) -> Loss:
        loss = next_token_objective(model, batch)
        loss.total.register_hook(self.nap)
        return loss


class _SlowBatches:
    def __init__(self, source: BatchSource, clock: Clock) -> None:
        self.source = source
        self.clock = clock

    def batch(self, position: int) -> Batch:
        self.clock.nap()
        return self.source.batch(position)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that all look at."""
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made.look)
    return made


@contextmanager
def slow_optimizers(clock: Clock) -> Iterator[None]:
    handle = register_optimizer_step_post_hook(clock.nap)
    yield
    handle.remove()


def measured(place: RunPlace) -> list[dict[str, float]]:
    return [
        {key: float(value) for key, value in row.items() if value}
        for row in rows(place.metrics_dir / "steps.csv")
    ]


@pytest.mark.parametrize(("part", "num_naps"), [*zip(STEP_PARTS, (2, 2, 2, 1), strict=True)])
def test_time_counts_in_its_part_once_for_each_micro_batch(
    toy: ModelConfig, plan: Plan, place: RunPlace, clock: Clock, part: str, num_naps: int
) -> None:
    slow = {
        "data_s": plan._replace(batches=clock.in_batches(plan.batches)),
        "forward_s": plan._replace(objective=clock.in_forward),
        "backward_s": plan._replace(objective=clock.in_backward),
    }.get(part, plan)
    with slow_optimizers(clock) if part == "optimizer_s" else nullcontext():
        fit(toy_model(toy), plan=slow._replace(num_steps=3), config=TWICE, place=place)
    for row in measured(place):
        expected = dict.fromkeys(STEP_PARTS, 0.0) | {part: num_naps * NAP_S}
        assert {name: row[name] for name in STEP_PARTS} == pytest.approx(expected, abs=1e-3)
        assert row["step_s"] == pytest.approx(num_naps * NAP_S, abs=1e-3)


def test_a_step_is_all_its_parts_and_speed_counts_all_micro_batches(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    model = toy_model(toy)
    fit(model, plan=plan, config=TWICE, place=place)
    for row in measured(place):
        parts = [row[part] for part in STEP_PARTS]
        assert all(part > 0 for part in parts)
        # Each is rounded to a microsecond.
        assert sum(parts) <= row["step_s"] + 5e-6
        assert row["tokens_per_s"] == pytest.approx(2 * 4 * 16 / row["step_s"])
        flops_per_s = row["tokens_per_s"] * training_flops_per_token(model, 16)
        assert row["mfu"] == pytest.approx(flops_per_s / place.peak_flops)


def test_validation_belongs_to_no_step(
    toy: ModelConfig, plan: Plan, place: RunPlace, clock: Clock
) -> None:
    slow = plan._replace(num_steps=3, validation=clock.in_batches(plan.validation))
    fit(toy_model(toy), plan=slow, config=replace(TRAIN, validate_every=1), place=place)
    assert clock.now_s > 3 * TRAIN.validation_batches * NAP_S
    assert all(row["step_s"] < NAP_S for row in measured(place))


def test_memory_is_the_highest_of_the_process() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc here")
    held = torch.ones(1 << 26)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    highest = int(line.split()[1]) * 1024
    # The kernel counts pages in batches for each processor.
    assert memory_bytes(torch.device("cpu")) == pytest.approx(highest, rel=0.02)
    assert memory_bytes(torch.device("cpu")) >= held.nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_read_late_from_a_gpu_are_whole_and_in_order(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    fit(toy_model(toy), plan=plan, config=TWICE, place=place)
    steps = measured(place)
    assert [row["step"] for row in steps] == list(range(1, 21))
    for row in steps:
        assert row["loss_nats"] > 0 and row["memory_bytes"] > 0
        assert 0 < sum(row[part] for part in STEP_PARTS) <= row["step_s"] + 5e-6
    # What a checkpoint holds is whole as well.
    newest = sorted(place.resume_dir.glob("step-*.ckpt"))[-1]
    state = torch.load(newest, weights_only=False)["callbacks"]["CurveRecorder"]
    assert [row["step"] for row in state["steps"]] == list(range(1, 21))
