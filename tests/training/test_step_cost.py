"""The time and memory of each step: in the right part, over all micro-batches, in every row."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from tests.training.conftest import TRAIN, toy_model
from tests.training.test_fit import rows
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from trilith.files import STEP_PARTS
from trilith.model import ModelConfig, Transformer, training_flops_per_token
from trilith.training.batches import Batch, BatchSource
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import Loss, next_token_objective
from trilith.training.step_cost import memory_bytes

NAP_S = 0.05
TWICE = replace(TRAIN, accumulate=2)


class SlowBatches:
    def __init__(self, source: BatchSource, nap_s: float) -> None:
        self.source = source
        self.nap_s = nap_s

    def batch(self, position: int) -> Batch:
        time.sleep(self.nap_s)
        return self.source.batch(position)


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        time.sleep(NAP_S)
        return grad


def slow_forward(model: Transformer, batch: Batch) -> Loss:
    time.sleep(NAP_S)
    return next_token_objective(model, batch)


def slow_backward(model: Transformer, batch: Batch) -> Loss:
    loss = next_token_objective(model, batch)
    return Loss(_SlowBackward.apply(loss.total), loss.nats)


@contextmanager
def slow_optimizers() -> Iterator[None]:
    handle = register_optimizer_step_post_hook(lambda *_: time.sleep(NAP_S))
    yield
    handle.remove()


def measured(place: RunPlace) -> list[dict[str, float]]:
    return [
        {key: float(value) for key, value in row.items() if value}
        for row in rows(place.metrics_dir / "steps.csv")
    ]


@pytest.mark.parametrize(("part", "num_naps"), [*zip(STEP_PARTS, (2, 2, 2, 1), strict=True)])
def test_time_counts_in_its_part_once_for_each_micro_batch(
    toy: ModelConfig, plan: Plan, place: RunPlace, part: str, num_naps: int
) -> None:
    slow = {
        "data_s": plan._replace(batches=SlowBatches(plan.batches, NAP_S)),
        "forward_s": plan._replace(objective=slow_forward),
        "backward_s": plan._replace(objective=slow_backward),
    }.get(part, plan)
    with slow_optimizers() if part == "optimizer_s" else nullcontext():
        fit(toy_model(toy), plan=slow._replace(num_steps=3), config=TWICE, place=place)
    steps = measured(place)
    assert all(row[part] >= num_naps * NAP_S for row in steps)
    typical = {name: median(row[name] for row in steps) for name in STEP_PARTS}
    assert max(typical, key=lambda name: typical[name]) == part, typical


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


def test_validation_and_saving_belong_to_no_step(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    slow = plan._replace(validation=SlowBatches(plan.validation, 0.3))
    often = replace(TRAIN, validate_every=1, checkpoint_every=1)
    fit(toy_model(toy), plan=slow._replace(num_steps=2), config=often, place=place)
    assert min(row["step_s"] for row in measured(place)) < 0.3


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
