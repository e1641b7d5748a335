"""One phase of one arm of the evolution: on the grid, trained, measured, written as a folder."""

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trilith.evolution import (
    AnswerRows,
    fit_to_grid,
    grid_sqnr_db,
    groups_within,
    layer_costs,
)
from trilith.files import is_first_process, remove, replacing, write_json
from trilith.model import Checkpoint, Transformer, move_to_grid, save_checkpoint
from trilith.quant import BitLinear, QuantConfig
from trilith.tokens import open_split
from trilith.training.answer_loss import answer_losses, held_out_loss, warn_of_overfitting
from trilith.training.batches import BatchSource, MaskedRows, TokenWindows
from trilith.training.devices import wait_for_all
from trilith.training.evolve_batches import EvolveBatches, evolve_objective
from trilith.training.evolve_config import EvolveConfig
from trilith.training.fit import Plan, RunPlace, TrainConfig, fit
from trilith.training.held_out import HeldOutStop
from trilith.training.module import cross_entropy
from trilith.training.pacing import Pace, hold_back, paced
from trilith.training.pretrain import validation_windows
from trilith.training.teacher import TeacherCache

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One phase of one arm: which model comes out, and on which grid it trains; None is dense.

    The first `num_text_steps` see plain text alone.
    """

    name: str
    reference: str
    quant: QuantConfig | None
    num_steps: int
    num_text_steps: int
    first_step: int


class Setting(NamedTuple):
    """What all phases of one evolution share."""

    config: EvolveConfig
    train: TrainConfig
    place: RunPlace
    teacher: Transformer
    tokens_dir: Path
    windows: TokenWindows
    taught: TeacherCache | None
    answers: AnswerRows
    held_out: AnswerRows
    licence: str | None
    calibration_NT: Tensor

    @property
    def batches_per_step(self) -> int:
        """Batches that all devices take in one optimizer step."""
        return self.train.accumulate * self.place.trainer.world_size


class _Start(NamedTuple):
    """The model that a phase starts from, its pace, and what is known of its fit."""

    model: Transformer
    pace: Pace | None
    metrics: dict[str, Any]


def run_phase(job: Job, before: Checkpoint, setting: Setting, folder: Path) -> None:
    """Train one phase; save checkpoint and curves as a folder that every process then sees."""
    place = setting.place
    curves_dir = place.resume_dir / "curves" / job.name
    own_place = place._replace(
        name=job.name, resume_dir=place.resume_dir / job.name, metrics_dir=curves_dir
    )
    start = _start(job, before, setting)
    model = start.model
    before_training = answer_losses(model, seen=setting.answers, held_out=setting.held_out)
    plan = _plan(job, start.pace, setting)
    if job.num_steps:
        found = fit(model, plan=plan, config=setting.train, place=own_place)
    else:
        found = _score(model, plan.validation, num_batches=setting.train.validation_batches)
    losses = answer_losses(model, seen=setting.answers, held_out=setting.held_out)
    warn_of_overfitting(job.name, before_training, losses, alert=place.wandb_run.alert)
    found |= losses.metrics() | _level_shares(model)
    place.wandb_run.log({f"{job.name}/{key}": value for key, value in found.items()})
    metrics = start.metrics | found
    if is_first_process():
        write_json(curves_dir / "metrics.json", metrics)
        provenance = _provenance(job, before.provenance, metrics, setting)
        result = Checkpoint(model, job.quant, before.tokenizer_sha256, provenance)
        with replacing(folder) as partial:
            save_checkpoint(result, partial)
            shutil.move(curves_dir, partial / "curves")
        remove(own_place.resume_dir)
    wait_for_all()
    log.info("%s: validation loss %.3f nats", job.name, metrics["validation/loss_nats"])


def _plan(job: Job, pace: Pace | None, setting: Setting) -> Plan:
    config, train = setting.config, setting.train
    objective = evolve_objective(
        setting.teacher,
        kl_weight=config.kl_weight if job.quant else 0.0,
        top_k=config.top_k,
        z_loss=config.recipe.z_loss,
    )
    # The control goes on for as long as the evolved phase did: nothing ends it early.
    patience = config.patience if job.quant else None
    stop = HeldOutStop(patience, lambda model: held_out_loss(model, setting.held_out))
    held_out = validation_windows(open_split(setting.tokens_dir, "validation").tokens, train)
    return Plan(
        job.num_steps, config.recipe, objective, _batches(job, setting), held_out, pace, stop
    )


def _batches(job: Job, setting: Setting) -> EvolveBatches:
    """Batches that go on where the phases before stopped; both arms see the same."""
    config, answers = setting.config, setting.answers
    rows = MaskedRows(
        answers.tokens,
        answers.answer_mask,
        batch_size=config.answer_rows,
        seed=setting.place.seed + 1,
        segments=answers.segments,
    )
    return EvolveBatches(
        setting.windows,
        rows,
        teacher=setting.taught if job.quant else None,
        first=job.first_step * setting.batches_per_step,
        num_text=job.num_text_steps * setting.batches_per_step,
        pull=lambda place: config.pull(place / setting.batches_per_step),
    )


def _start(job: Job, before: Checkpoint, setting: Setting) -> _Start:
    if job.quant is None:
        return _Start(move_to_grid(before.model, None), None, {})
    windows_NT = setting.calibration_NT
    method = setting.config.fit
    model, errors = fit_to_grid(before.model, job.quant, method=method, windows_NT=windows_NT)
    metrics: dict[str, Any] = {
        "quant/fitted_sqnr_db": grid_sqnr_db(model),
        "fit/output_error": sum(errors.values()) / len(errors),
    }
    metrics |= {f"fit/output_error/{name}": error for name, error in errors.items()}
    pace = _pace(job, before, model, setting)
    if pace is not None:
        hold_back(model, before.model, pace)
        metrics["descent/num_groups"] = len(set(pace.move_steps.values()))
        metrics |= {f"descent/move_step/{name}": step for name, step in pace.move_steps.items()}
    setting.place.wandb_run.log({f"{job.name}/{key}": value for key, value in metrics.items()})
    return _Start(model, pace, metrics)


def _pace(job: Job, before: Checkpoint, model: Transformer, setting: Setting) -> Pace | None:
    """Which layers move when, by what each costs alone; None if all move at once."""
    config = setting.config
    if config.kl_budget is None or config.move_share is None or not job.num_steps:
        return None
    assert job.quant is not None
    costs = layer_costs(setting.teacher, before.model, model, windows_NT=setting.calibration_NT)
    groups = groups_within(costs, budget=config.kl_budget)
    moves = paced(groups, num_steps=job.num_steps, move_share=config.move_share)
    return Pace(before.quant, job.quant, moves)


@torch.no_grad()
def _score(model: Transformer, validation: BatchSource, *, num_batches: int) -> dict[str, Any]:
    """What `fit` would say of a model that is not trained."""
    model.eval()
    batches = [validation.batch(position) for position in range(num_batches)]
    losses = [float(cross_entropy(model(batch.inputs_BT), batch)) for batch in batches]
    counts = ("num_steps", "last_step", "result_step", "result_tokens")
    nothing = {f"train/{key}": 0 for key in counts}
    return {"validation/loss_nats": sum(losses) / len(losses), **nothing}


@torch.no_grad()
def _level_shares(model: Transformer) -> dict[str, float]:
    """Share of the weights on each level, all projections together; nothing of a dense model."""
    layers = [layer for layer in model.modules() if isinstance(layer, BitLinear)]
    if not layers:
        return {}
    grid = layers[0].config.levels
    codes = torch.cat([layer.quantized_weight().codes.flatten() for layer in layers])
    counts = codes.bincount(minlength=grid.num_levels) / len(codes)
    return {
        f"quant/level_share/{level:+.3f}": float(share)
        for level, share in zip(grid.levels, counts, strict=True)
    }


def _provenance(
    job: Job, seen: dict[str, Any], metrics: dict[str, Any], setting: Setting
) -> dict[str, Any]:
    num_steps, answers = metrics["train/result_step"], setting.answers
    num_answer_steps = max(0, num_steps - job.num_text_steps)
    num_rows = num_answer_steps * setting.batches_per_step * setting.config.answer_rows
    num_answers = num_rows * answers.num_examples // len(answers.tokens)
    provenance = seen | {
        "name": job.name,
        "reference": job.reference,
        "num_tokens_seen": seen["num_tokens_seen"] + metrics["train/result_tokens"],
        "num_answers_seen": seen.get("num_answers_seen", 0) + num_answers,
        "num_steps": seen["num_steps"] + num_steps,
    }
    if setting.licence is not None:
        provenance["instructions_licence"] = setting.licence
    return provenance
