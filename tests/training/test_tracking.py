"""What a run leaves in W&B's offline files, read back with W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults import FaultyObjective
from tests.training.conftest import TRAIN, toy_model

from trilith.model import ModelConfig
from trilith.training.curves import latest_rows
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import next_token_objective
from trilith.training.tracking import TrackingConfig, start_run


def records(run_dir: Path) -> list[dict[str, Any]]:
    wandb = Path(sys.executable).parent / "wandb"
    command = [str(wandb), "leet", "inspect", "--json", str(run_dir)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def test_history_and_alerts_are_in_the_offline_files(
    toy: ModelConfig, plan: Plan, place: RunPlace, tmp_path: Path
) -> None:
    config = TrackingConfig("offline", "trilith", str(tmp_path / "runs"))
    run = start_run(config, name="toy", run_id="toy-1", settings={"seed": 0})
    objective = FaultyObjective(next_token_objective, {13: "nan_gradient"}, seed=0)
    spoiled = plan._replace(objective=objective)
    fit(toy_model(toy), plan=spoiled, config=TRAIN, place=place._replace(wandb_run=run))
    run.finish()
    (run_dir,) = (tmp_path / "runs/wandb").glob("offline-run-*")
    text = json.dumps(records(run_dir))
    for key in (
        "train/data_s",
        "train/forward_s",
        "train/backward_s",
        "train/optimizer_s",
        "train/memory_bytes",
        "train/loss_nats",
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_s",
        "train/mfu",
        "quant/flip_rate",
        "quant/zero_share",
        "validation/loss_nats",
    ):
        assert key in text, key
    assert "rollback at step 13" in text
    (table,) = run_dir.glob("files/media/table/stability/events*.json")
    kinds = [kind for step, kind, detail in json.loads(table.read_text())["data"]]
    assert kinds == ["spike", "rollback", "lr_cut"]


def test_the_latest_rows_cover_the_time_asked_for() -> None:
    rows = [{"step": step, "step_s": 20.0} for step in range(1, 11)]
    assert [row["step"] for row in latest_rows(rows, seconds=60.0)] == [8, 9, 10]
    assert latest_rows(rows, seconds=1e9) == rows
    assert latest_rows([], seconds=60.0) == []


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose offline, online or disabled"):
        TrackingConfig("sometimes", "trilith", str(tmp_path))  # type: ignore[arg-type]
