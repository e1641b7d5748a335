"""Smoothing, thinning and rollbacks of a run's curves."""

from pathlib import Path

import numpy as np
from tests.reporting.synthetic import STEP_COST, STEP_HEADER, write_rows

from trilith.reporting.curves import latest_pass, read_run, smooth, thin


def test_smoothing_keeps_a_constant_up_to_both_ends() -> None:
    values = np.full(203, 3.25)
    np.testing.assert_allclose(smooth(values), values, rtol=1e-12)


def test_smoothing_averages_a_centred_window() -> None:
    values = np.random.default_rng(0).normal(size=200)
    # A fortieth of 200 steps is a window of 5.
    expected = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(200)]
    np.testing.assert_allclose(smooth(values), expected, rtol=1e-9)


def test_a_gap_does_not_spread() -> None:
    values = np.ones(200)
    values[100] = np.nan
    values[50] = np.inf
    np.testing.assert_allclose(smooth(values), np.ones(200), rtol=1e-12)


def test_a_curve_of_gaps_and_a_curve_of_one_point_survive() -> None:
    assert np.isnan(smooth(np.full(90, np.nan))).all()
    assert smooth(np.array([2.0])).tolist() == [2.0]


def test_thinning_keeps_every_spike_and_the_order() -> None:
    values = np.zeros(50_000)
    values[[17, 23_456, 49_999]] = [9.0, -9.0, 8.0]
    rows = thin(values)
    assert len(rows) <= 1200
    assert {17, 23_456, 49_999} <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()


def test_after_a_rollback_the_later_pass_counts(tmp_path: Path) -> None:
    steps = [(1, 5.0), (2, 4.0), (3, 99.0), (2, 3.5), (3, 3.0)]
    rows = [[step, 1, loss, "", 0.1, 1, 1, 0.1, *STEP_COST, "", ""] for step, loss in steps]
    write_rows(tmp_path / "steps.csv", STEP_HEADER, rows)
    write_rows(tmp_path / "validation.csv", ("step", "tokens", "loss_nats"), [])
    write_rows(tmp_path / "events.csv", ("step", "kind", "detail"), [(3, "rollback", "to 1")])
    run = read_run(tmp_path, metrics={}, made_by="pretrain")
    kept_steps, losses = latest_pass(run, column="loss_nats")
    assert kept_steps.tolist() == [1, 2, 3]
    assert losses.tolist() == [5.0, 3.5, 3.0]
    assert np.isnan(run.steps["flip_rate"]).all()
