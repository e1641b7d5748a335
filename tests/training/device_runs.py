"""Toy runs on one or two CPU processes: `python -m tests.training.device_runs FOLDER NAME ...`.

Each run takes the same batches a step, whatever the number of processes.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.faults import FaultyObjective
from tests.training.conftest import RECIPE, TERNARY, TRAIN, pattern
from tests.training.test_fit import stopping_at
from tests.training.test_resume_state import BEST, worse_after

from trilith.files import is_first_process
from trilith.model import ModelConfig, Transformer, build_model
from trilith.quant import QuantConfig
from trilith.training.batches import TokenWindows
from trilith.training.devices import TrainerConfig
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.module import Objective, next_token_objective
from trilith.training.tracking import TrackingConfig, start_run

NUM_STEPS = 20
# Micro-batches of one optimizer step, on all devices together.
STEP_BATCHES = 2
FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)
MODEL = ModelConfig(
    name="toy",
    vocab_size=37,
    width=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    mlp="swiglu",
    mlp_width=40,
    context=32,
    rope_theta=10000.0,
    norm_eps=1e-5,
    qk_norm=True,
    sub_norm=True,
    tied_head=True,
)


class Run(NamedTuple):
    """One toy run: `stop_at` ends it with an error at that step, `spike_at` spoils the loss there.

    The spike is in the second process alone. With `unlearns_at` the model gets worse from that step
    on, and the best weights are the result. Runs with the same `resume` go on from one another.
    """

    strategy: str
    devices: int
    quant: QuantConfig | None = None
    optimizer: str = "adamw"
    dense_share: float = 0.0
    clip_norm: float = 1.0
    stop_at: int | None = None
    spike_at: int | None = None
    unlearns_at: int | None = None
    resume: str | None = None


TERNARY_RUN: dict[str, Any] = {"quant": TERNARY, "dense_share": 0.5}
# Without clipping: the norm of shards is summed in another order, and one last bit of a weight is
# enough to move a code.
FITTED_RUN: dict[str, Any] = {"quant": FITTED, "dense_share": 0.5, "clip_norm": 1e9}
LEARNED_RUN = FITTED_RUN | {"quant": replace(FITTED, scale_rule="learned")}
RUNS = {
    "single_dense": Run("single", 1),
    "single_ternary": Run("single", 1, **TERNARY_RUN),
    "single_muon": Run("single", 1, optimizer="muon"),
    "ddp_dense": Run("ddp", 2),
    "ddp_ternary": Run("ddp", 2, **TERNARY_RUN),
    "fsdp_dense": Run("fsdp", 2),
    "ddp_fitted": Run("ddp", 2, **FITTED_RUN),
    "fsdp_fitted": Run("fsdp", 2, **FITTED_RUN),
    "single_fitted": Run("single", 1, **FITTED_RUN),
    "single_learned": Run("single", 1, **LEARNED_RUN),
    "fsdp_learned": Run("fsdp", 2, **LEARNED_RUN),
    "fsdp_muon": Run("fsdp", 2, optimizer="muon"),
    "single_best": Run("single", 1, unlearns_at=10),
    "ddp_best": Run("ddp", 2, unlearns_at=10),
    "fsdp_best": Run("fsdp", 2, unlearns_at=10),
    "ddp_spike": Run("ddp", 2, spike_at=13),
    "fsdp_spike": Run("fsdp", 2, spike_at=13),
    "ddp_1_stops": Run("ddp", 1, **TERNARY_RUN, stop_at=13, resume="ddp_1"),
    "ddp_1_to_2": Run("ddp", 2, **TERNARY_RUN, resume="ddp_1"),
    "ddp_2_stops": Run("ddp", 2, **TERNARY_RUN, stop_at=13, resume="ddp_2"),
    "ddp_2_to_1": Run("ddp", 1, **TERNARY_RUN, resume="ddp_2"),
    "fsdp_1_stops": Run("fsdp", 1, optimizer="muon", stop_at=13, resume="fsdp_1"),
    "fsdp_1_to_2": Run("fsdp", 2, optimizer="muon", resume="fsdp_1"),
    "fsdp_2_stops": Run("fsdp", 2, optimizer="muon", stop_at=13, resume="fsdp_2"),
    "fsdp_2_to_1": Run("fsdp", 1, optimizer="muon", resume="fsdp_2"),
}


def train(name: str, folder: Path) -> None:
    """Do the run; curves go to `folder/name`, each process's weights to `weights-RANK.pt` there."""
    run = RUNS[name]
    accumulate = STEP_BATCHES // run.devices
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(MODEL, run.quant)
    tracking = TrackingConfig("disabled", "trilith", str(folder / "runs"))
    place = RunPlace(
        name=name,
        resume_dir=folder / (run.resume or f"{name}_state"),
        metrics_dir=folder / name,
        wandb_run=start_run(tracking, name=name, run_id=name, settings={}),
        peak_flops=1e9,
        seed=0,
        trainer=TrainerConfig(run.strategy, run.devices, 1),  # type: ignore[arg-type]
    )
    try:
        fit(
            model,
            plan=_plan(run, accumulate),
            config=replace(BEST if run.unlearns_at else TRAIN, accumulate=accumulate),
            place=place,
        )
    except ZeroDivisionError:
        assert run.stop_at is not None
    _save(model, folder / name)


def _plan(run: Run, accumulate: int) -> Plan:
    tokens = pattern(2000)
    batches = TokenWindows(tokens[:1600], context=16, batch_size=4, seed=0)
    held_out = TokenWindows(tokens[1600:], context=16, batch_size=4, seed=0)
    recipe = replace(
        RECIPE, optimizer=run.optimizer, dense_share=run.dense_share, clip_norm=run.clip_norm
    )
    objective: Objective = next_token_objective
    if run.stop_at is not None:
        objective = stopping_at(run.stop_at * accumulate, ZeroDivisionError)
    if run.unlearns_at is not None:
        objective = worse_after(run.unlearns_at * accumulate)
    if run.spike_at is not None and not is_first_process():
        objective = FaultyObjective(objective, {run.spike_at: "exploding_batch"}, seed=0)
    return Plan(NUM_STEPS, recipe, objective, batches, held_out)


def _save(model: Transformer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rank = 0 if is_first_process() else 1
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        train(argument, Path(sys.argv[1]))
