"""Bad signals are told from noisy ones: one at a time, then over ten thousand clean steps."""

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.training.conftest import STABILITY

from trilith.training.detector import (
    SIGNALS,
    Detector,
    Fault,
    GridSignals,
    StabilityConfig,
    StepSignals,
    diagnosis,
)

ROOT = Path(__file__).parents[2]
DEFAULT = StabilityConfig(**yaml.safe_load((ROOT / "conf/train/cpu.yaml").read_text())["stability"])
CLEAN = StepSignals(loss_nats=3.0, grad_norm=0.5, update_size=1e-3, foreign_change=0.0)
CLEAN_GRID = GridSignals(flip_rate=0.02, zero_share=0.4, scale_shift=0.1)


def settled(config: StabilityConfig = STABILITY) -> Detector:
    """A detector with full windows of slightly moving signals."""
    detector = Detector(config)
    for step in range(1, config.window + 1):
        factor = 1 + 0.02 * (step % 3)
        signals = StepSignals(*(factor * value for value in CLEAN))
        grid = CLEAN_GRID if step % config.grid_every == 0 else None
        assert detector.check(step, signals, grid) is None
    return detector


def signal_of(fault: Fault | None) -> str | None:
    return fault and fault.signal


@pytest.mark.parametrize("name", ["loss_nats", "grad_norm", "update_size"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_bad_at_the_first_step(name: str, value: float) -> None:
    fault = Detector(STABILITY).check(1, CLEAN._replace(**{name: value}), None)
    assert signal_of(fault) == "not_finite"
    assert name in str(fault)


@pytest.mark.parametrize(
    ("name", "value", "signal"),
    [
        ("loss_nats", 4.5, "loss"),
        ("grad_norm", 8.0, "grad_norm"),
        ("update_size", 2e-2, "update"),
        ("foreign_change", 1.0, "foreign_change"),
    ],
)
def test_a_jump_is_bad_and_does_not_enter_the_window(name: str, value: float, signal: str) -> None:
    detector = settled()
    for _ in range(STABILITY.window):
        assert signal_of(detector.check(99, CLEAN._replace(**{name: value}), None)) == signal
    assert detector.check(99, CLEAN, None) is None


@pytest.mark.parametrize(
    ("name", "value", "signal"),
    [
        ("flip_rate", 0.5, "flip_burst"),
        ("zero_share", 0.6, "zero_drift"),
        ("zero_share", 0.2, "zero_drift"),
        ("scale_shift", math.log(9), "scale_jump"),
        ("scale_shift", math.inf, "not_finite"),
    ],
)
def test_what_the_codes_must_not_do(name: str, value: float, signal: str) -> None:
    detector = settled()
    fault = detector.check(99, CLEAN, CLEAN_GRID._replace(**{name: value}))
    assert signal_of(fault) == signal
    assert detector.check(100, CLEAN, CLEAN_GRID) is None


def test_a_fall_is_never_bad() -> None:
    detector = settled()
    fallen = StepSignals(loss_nats=0.01, grad_norm=1e-4, update_size=0.0, foreign_change=0.0)
    assert detector.check(99, fallen, CLEAN_GRID._replace(flip_rate=0.0)) is None


def test_without_a_history_only_what_needs_none_is_bad() -> None:
    detector = Detector(STABILITY)
    assert detector.check(1, CLEAN._replace(loss_nats=99.0), CLEAN_GRID) is None
    settled_then_forgetful = settled()
    settled_then_forgetful.forget()
    assert settled_then_forgetful.check(99, CLEAN._replace(loss_nats=9.0), None) is None


def test_windows_survive_a_resume() -> None:
    resumed = Detector(STABILITY)
    resumed.load_state_dict(settled().state_dict())
    for bad in (CLEAN._replace(loss_nats=4.5), CLEAN._replace(update_size=1.0)):
        assert resumed.check(99, bad, None) == settled().check(99, bad, None)


@pytest.mark.parametrize(
    ("changed", "signals", "grid"),
    [
        ({"spike_sigmas": 99.0}, CLEAN._replace(loss_nats=4.5), None),
        ({"window": 200, "min_history": 100}, CLEAN._replace(loss_nats=4.5), None),
        ({"max_zero_drift": 0.3}, CLEAN, CLEAN_GRID._replace(zero_share=0.6)),
        ({"max_scale_factor": 20.0}, CLEAN, CLEAN_GRID._replace(scale_shift=math.log(9))),
    ],
)
def test_each_threshold_decides(changed: dict[str, Any], signals: Any, grid: Any) -> None:
    other = Detector(replace(STABILITY, **changed))
    other.load_state_dict(settled().state_dict())
    assert settled().check(99, signals, grid) is not None
    assert other.check(99, signals, grid) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"min_history": 1}, "min_history=1"),
        ({"min_history": 99}, "min_history=99"),
        ({"lr_factor": 0.0}, "lr_factor=0.0"),
        ({"max_rollbacks": -1}, "max_rollbacks=-1"),
        ({"snapshot_every": 7}, "must be a multiple of grid_every=5"),
        ({"max_scale_factor": 1.0}, "max_scale_factor=1.0"),
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(STABILITY, **wrong)


@pytest.mark.parametrize("seed", range(5))
def test_no_alarm_in_ten_thousand_synthetic_steps(seed: int) -> None:
    """Falling curves with Student's t noise (10 degrees of freedom) and the schedule's warm-up."""
    random = np.random.default_rng(seed)
    detector = Detector(DEFAULT)
    noise = random.standard_t(10, size=(10_000, 3))
    for step in range(10_000):
        loss = 2.0 + 6.0 * math.exp(-step / 300) + 0.15 * noise[step, 0]
        grad_norm = (0.3 + math.exp(-step / 500)) * math.exp(0.12 * noise[step, 1])
        rate = min(1.0, (step + 1) / 60) * (1 + math.cos(math.pi * step / 10_000))
        update = 1e-3 * rate * math.exp(0.02 * noise[step, 2])
        signals = StepSignals(loss, grad_norm, update, 0.0)
        flips = 0.002 + 0.07 * rate * float(random.uniform(0.8, 1.2))
        zero_share = 0.31 + 0.15 * step / 10_000 + float(random.normal(0, 0.002))
        grid = GridSignals(flips, zero_share, abs(float(random.normal(0, 0.3))))
        is_measured = step % DEFAULT.grid_every == 0
        assert detector.check(step, signals, grid if is_measured else None) is None


def test_no_alarm_in_ten_thousand_steps_of_real_curves() -> None:
    """The curves of the default run as they were, and again with their neighbours swapped."""
    random = np.random.default_rng(0)
    num_steps = 0
    while num_steps < 10_000:
        for curve in real_curves():
            detector = Detector(DEFAULT)
            if num_steps >= 4200:
                order = np.argsort(np.arange(len(curve)) + random.uniform(0, 30, len(curve)))
                curve = [curve[place] for place in order]
            for step, (signals, grid) in enumerate(curve):
                fault = detector.check(step, signals, grid)
                assert fault is None, fault
            num_steps += len(curve)


def real_curves() -> Iterator[list[tuple[StepSignals, GridSignals | None]]]:
    """Loss, gradient norm and codes of every run in the report."""
    files = sorted((ROOT / "reports/metrics").glob("**/steps.csv"))
    assert files, "the report has no curves"
    for file in files:
        with file.open() as text:
            rows = list(csv.DictReader(text))
        yield [_real_signals(row) for row in rows]


def _real_signals(row: dict[str, str]) -> tuple[StepSignals, GridSignals | None]:
    loss, grad_norm, rate = (float(row[key]) for key in ("loss_nats", "grad_norm", "lr"))
    grid = None
    if row["flip_rate"]:
        grid = GridSignals(float(row["flip_rate"]), float(row["zero_share"]), 0.0)
    return StepSignals(loss, grad_norm, rate, 0.0), grid


def test_the_diagnosis_names_signals_steps_and_a_way_out() -> None:
    faults = [Fault(7, "loss", "a"), Fault(12, "foreign_change", "b"), Fault(31, "loss", "c")]
    told = diagnosis(faults)
    assert told.startswith("loss at steps 7, 31; foreign_change at step 12 (last: c)")
    assert "recipe.peak_lr" in told
    for signal in SIGNALS:
        assert len(diagnosis([Fault(1, signal, "x")])) > 60
