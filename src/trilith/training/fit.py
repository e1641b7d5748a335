"""One training run: a model, an objective and batches in; curves, events and metrics out."""

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger

from trilith.files import (
    EVENT_COLUMNS,
    STEP_COLUMNS,
    VALIDATION_COLUMNS,
    write_csv,
)
from trilith.model import Transformer, training_flops_per_token
from trilith.training.acceleration import AccelerationConfig, accelerated
from trilith.training.batches import BatchSource, HeldOutLoader, PositionLoader
from trilith.training.curves import CurveRecorder
from trilith.training.devices import SINGLE, TrainerConfig, require_devices, trainer_arguments
from trilith.training.held_out import HeldOutStop
from trilith.training.memory import Precision
from trilith.training.module import LanguageModule, Objective
from trilith.training.pacing import Pace
from trilith.training.progress import StepBar
from trilith.training.recipe import Recipe
from trilith.training.resume import Best, DirectCheckpointIO, ResumeCallback, latest_checkpoint
from trilith.training.sharding import copy_weights
from trilith.training.stability import StabilityCallback, StabilityConfig
from trilith.training.tracking import log_events

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """What all training runs share. Intervals count optimizer steps.

    The resume state holds the last `keep_last` checkpoints and the weights of the best validation;
    `result` says whose weights a run hands on. A step takes `accumulate` batches of
    `micro_batch_size` windows on every device.
    """

    context: int
    micro_batch_size: int
    accumulate: int
    precision: Precision
    acceleration: AccelerationConfig
    validate_every: int
    validation_batches: int
    checkpoint_every: int
    keep_last: int
    result: Literal["last", "best"]
    stability: StabilityConfig

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"train.{key}={value} must be at least 1")
        if self.result not in ("last", "best"):
            raise ValueError(f"train.result={self.result!r} is not known; choose last or best")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"train.precision={self.precision!r} is not known; choose 32-true or bf16-mixed"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step on one device."""
        return self.context * self.micro_batch_size * self.accumulate


class Plan(NamedTuple):
    """What one run does: how long, by which recipe, on which batches.

    With a pace layers move to the grid one after another; `stop` may end the run early, which then
    hands on the weights of its best validation.
    """

    num_steps: int
    recipe: Recipe
    objective: Objective
    batches: BatchSource
    validation: BatchSource
    pace: Pace | None = None
    stop: HeldOutStop | None = None


class RunPlace(NamedTuple):
    """Where one run lives: resume state, curves, tracking, devices, and the peak of one of them."""

    name: str
    resume_dir: Path
    metrics_dir: Path
    wandb_run: Any
    peak_flops: float
    seed: int
    trainer: TrainerConfig = SINGLE


def fit(model: Transformer, *, plan: Plan, config: TrainConfig, place: RunPlace) -> dict[str, Any]:
    """Train the model in place; write curves; return flat metrics.

    `train/result_step` and `train/result_tokens` are those of the weights that the model ends with,
    and `validation/loss_nats` is their loss; all else is of the whole run, which ended after
    `train/last_step` of its `train/num_steps`.

    On several devices every process runs this, and ends with the same model and metrics; the first
    one writes. An earlier unfinished run with the same `resume_dir` goes on where it was saved. The
    folder stays: whoever called removes it once the model is safe on disk.

    Raises:
        ValueError: the run stays unstable after all rollbacks, or the devices do not fit it.
        KeyboardInterrupt: the user stopped it; the same command goes on from the last save.
    """
    started = time.perf_counter()
    _check_devices(plan, config, place.trainer)
    module = _module(model, plan, seed=place.seed)
    curves, stability, resume = watchers = _watchers(model, plan, config, place)
    trainer = _trainer(plan, config, place, watchers)
    batches, held_out = _loaders(plan, config, trainer)
    checkpoint = latest_checkpoint(place.resume_dir)
    if checkpoint is not None:
        log.info("%s: goes on from %s", place.name, checkpoint)
    try:
        with accelerated(model, config.acceleration, trainer.strategy.root_device):
            trainer.fit(module, batches, held_out, ckpt_path=checkpoint, weights_only=False)
            if curves.validations[-1]["step"] < trainer.global_step:
                trainer.validate(module, held_out, verbose=False)
    except SystemExit:
        # Lightning turns Ctrl-C into an exit; the stage reports it as what it is.
        raise KeyboardInterrupt from None
    finally:
        if trainer.is_global_zero:
            _write_curves(place.metrics_dir, curves, stability)
            log_events(place.wandb_run, stability.events)
    is_stopped = plan.stop is not None and plan.stop.stopped_step is not None
    best = resume.load_best(module) if config.result == "best" or is_stopped else None
    if module.model is not model:
        copy_weights(module.model, model)
    model.eval()
    metrics = _metrics(plan, curves, stability, best)
    metrics["train/last_step"] = module.recipe_step
    wall_s = time.perf_counter() - started
    return metrics | {"hardware/peak_flops": curves.peak_flops, "wall_s": wall_s}


def _module(model: Transformer, plan: Plan, *, seed: int) -> LanguageModule:
    return LanguageModule(
        model,
        objective=plan.objective,
        recipe=plan.recipe.at_width(model.config.width),
        num_steps=plan.num_steps,
        pace=plan.pace,
        seed=seed,
    )


class _Watchers(NamedTuple):
    """What looks on while a model trains, in this order."""

    curves: CurveRecorder
    stability: StabilityCallback
    resume: ResumeCallback


def _watchers(model: Transformer, plan: Plan, config: TrainConfig, place: RunPlace) -> _Watchers:
    num_ranks = place.trainer.world_size
    curves = CurveRecorder(
        tokens_per_step=config.tokens_per_step * num_ranks,
        flops_per_token=training_flops_per_token(model, config.context),
        peak_flops=place.peak_flops * num_ranks,
    )
    resume = ResumeCallback(
        place.resume_dir,
        every=config.checkpoint_every,
        validate_every=_validate_every(plan, config),
        keep_last=config.keep_last,
    )
    return _Watchers(curves, StabilityCallback(config.stability, _alert(place.wandb_run)), resume)


def _validate_every(plan: Plan, config: TrainConfig) -> int:
    return min(config.validate_every, plan.num_steps)


class _Loaders(NamedTuple):
    """This process's share of the batches."""

    batches: PositionLoader
    held_out: HeldOutLoader


def _loaders(plan: Plan, config: TrainConfig, trainer: lightning.Trainer) -> _Loaders:
    rank, num_ranks = trainer.global_rank, trainer.world_size
    # Enough for the steps that rollbacks may undo, too; the run ends by its count of steps.
    num_batches = (plan.num_steps + config.stability.max_lost_steps) * config.accumulate
    num_held_out = config.validation_batches
    return _Loaders(
        PositionLoader(plan.batches, num_batches=num_batches, rank=rank, num_ranks=num_ranks),
        HeldOutLoader(plan.validation, num_batches=num_held_out, rank=rank, num_ranks=num_ranks),
    )


def _check_devices(plan: Plan, config: TrainConfig, trainer: TrainerConfig) -> None:
    require_devices(trainer)
    if trainer.strategy == "fsdp" and (plan.recipe.latent_noise or plan.pace is not None):
        raise ValueError(
            "recipe.latent_noise and evolve.kl_budget need whole weights in every process; "
            "use trainer=ddp, or 0 and null"
        )
    if config.validation_batches % trainer.world_size:
        raise ValueError(
            f"train.validation_batches={config.validation_batches} must be a multiple of the "
            f"{trainer.world_size} devices of the section trainer: each takes as many"
        )


def _quiet_lightning() -> None:
    """Keep Lightning's tips and notices on its own internals from users."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*LeafSpec.*", ".*does not have many workers.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", text)


def _trainer(
    plan: Plan, config: TrainConfig, place: RunPlace, watchers: _Watchers
) -> lightning.Trainer:
    _quiet_lightning()
    lightning.seed_everything(place.seed, verbose=False)
    return lightning.Trainer(
        **trainer_arguments(place.trainer),
        precision=config.precision,
        deterministic=True,
        max_steps=plan.num_steps,
        max_epochs=1,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=_validate_every(plan, config) * config.accumulate,
        num_sanity_val_steps=0,
        logger=WandbLogger(experiment=place.wandb_run),
        callbacks=_callbacks(plan, watchers, place.name),
        profiler=watchers.curves.clock,
        plugins=DirectCheckpointIO(),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place.resume_dir,
    )


def _callbacks(plan: Plan, watchers: _Watchers, name: str) -> list[lightning.Callback]:
    """All of them in order: what a validation says comes before the state that is saved after."""
    curves, stability, resume = watchers
    stop = [] if plan.stop is None else [plan.stop]
    return [curves, stability, *stop, resume, StepBar(name, curves)]


def _metrics(
    plan: Plan, curves: CurveRecorder, stability: StabilityCallback, best: Best | None
) -> dict[str, Any]:
    result = best or Best(curves.steps[-1]["step"], curves.validations[-1]["loss_nats"])
    undone = {fault.step for fault in stability.faults}
    tail = [row for row in curves.steps if row["step"] not in undone]
    tail = tail[-max(1, len(tail) // 20) :]
    last_signals: dict[str, Any] = next(
        (row for row in reversed(curves.steps) if "flip_rate" in row), {}
    )
    metrics = {
        "train/loss_nats": _mean(tail, "loss_nats"),
        "validation/loss_nats": result.loss_nats,
        "train/tokens_per_s": _median(curves.steps, "tokens_per_s"),
        "train/mfu": _median(curves.steps, "mfu"),
        "train/num_tokens": curves.steps[-1]["tokens"],
        "train/num_steps": plan.num_steps,
        "train/result_step": result.step,
        "train/result_tokens": result.step * curves.tokens_per_step,
    }
    if "kl_nats" in tail[-1]:
        metrics["train/kl_nats"] = _mean(tail, "kl_nats")
    metrics |= {f"stability/{name}": count for name, count in stability.num_events().items()}
    return metrics | {
        f"quant/{key}": last_signals[key]
        for key in ("zero_share", "flip_rate")
        if key in last_signals
    }


def _write_curves(folder: Path, curves: CurveRecorder, stability: StabilityCallback) -> None:
    write_csv(folder / "steps.csv", curves.steps, STEP_COLUMNS)
    write_csv(folder / "validation.csv", curves.validations, VALIDATION_COLUMNS)
    write_csv(folder / "events.csv", stability.events, EVENT_COLUMNS)


def _alert(wandb_run: Any) -> Any:
    def alert(title: str, text: str) -> None:
        log.warning("%s: %s", title, text)
        wandb_run.alert(title=title, text=text)

    return alert


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return float(torch.tensor([row[key] for row in rows]).median())
