"""One training run: a model, an objective and batches in; curves, events and metrics out."""

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from trilith.training.module import LanguageModule, Objective
from trilith.training.progress import StepBar
from trilith.training.recipe import Recipe
from trilith.training.resume import ResumeCallback, latest_checkpoint
from trilith.training.stability import StabilityCallback, StabilityConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """What all training runs share. Intervals count optimizer steps."""

    context: int
    micro_batch_size: int
    accumulate: int
    precision: Literal["32-true", "bf16-mixed"]
    acceleration: AccelerationConfig
    validate_every: int
    validation_batches: int
    checkpoint_every: int
    stability: StabilityConfig

    def __post_init__(self) -> None:
        for key in ("context", "micro_batch_size", "accumulate", "validate_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"train.{key}={getattr(self, key)} must be at least 1")
        if self.validation_batches < 1 or self.checkpoint_every < 1:
            raise ValueError(
                f"train.validation_batches={self.validation_batches} and checkpoint_every="
                f"{self.checkpoint_every} must be at least 1"
            )
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"train.precision={self.precision!r} is not known; choose 32-true or bf16-mixed"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.context * self.micro_batch_size * self.accumulate


class Plan(NamedTuple):
    """What one run does: how long, by which recipe, on which batches."""

    num_steps: int
    recipe: Recipe
    objective: Objective
    batches: BatchSource
    validation: BatchSource


class RunPlace(NamedTuple):
    """Where one run lives: resume state, curves, tracking, and the peak for its MFU."""

    name: str
    resume_dir: Path
    metrics_dir: Path
    wandb_run: Any
    peak_flops: float
    seed: int


def fit(model: Transformer, *, plan: Plan, config: TrainConfig, place: RunPlace) -> dict[str, Any]:
    """Train the model in place; write curves; return flat metrics.

    An earlier unfinished run with the same `resume_dir` goes on where it was saved. The folder
    stays: whoever called removes it once the model is safe on disk.

    Raises:
        ValueError: the run stays unstable after all rollbacks.
        KeyboardInterrupt: the user stopped it; the same command goes on from the last save.
    """
    started = time.perf_counter()
    module = LanguageModule(
        model, objective=plan.objective, recipe=plan.recipe, num_steps=plan.num_steps
    )
    curves = CurveRecorder(
        tokens_per_step=config.tokens_per_step,
        flops_per_token=training_flops_per_token(model, config.context),
        peak_flops=place.peak_flops,
    )
    stability = StabilityCallback(config.stability, alert=_alert(place.wandb_run))
    trainer = _trainer(plan, config, place, [curves, stability])
    held_out = HeldOutLoader(plan.validation, num_batches=config.validation_batches)
    checkpoint = latest_checkpoint(place.resume_dir)
    if checkpoint is not None:
        log.info("%s: goes on from %s", place.name, checkpoint)
    try:
        with accelerated(model, config.acceleration, trainer.strategy.root_device):
            trainer.fit(
                module,
                PositionLoader(plan.batches, num_batches=plan.num_steps * config.accumulate),
                held_out,
                ckpt_path=checkpoint,
                weights_only=False,
            )
            if curves.validations[-1]["step"] < plan.num_steps:
                trainer.validate(module, held_out, verbose=False)
    except SystemExit:
        # Lightning turns Ctrl-C into an exit; the stage reports it as what it is.
        raise KeyboardInterrupt from None
    finally:
        _write_curves(place.metrics_dir, curves, stability)
    model.eval()
    wall_s = time.perf_counter() - started
    metrics = _metrics(plan, curves, stability)
    return metrics | {"hardware/peak_flops": place.peak_flops, "wall_s": wall_s}


def _quiet_lightning() -> None:
    """Keep Lightning's tips and notices on its own internals from users."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in (".*LeafSpec.*", ".*does not have many workers.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", text)


def _trainer(
    plan: Plan, config: TrainConfig, place: RunPlace, callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    _quiet_lightning()
    lightning.seed_everything(place.seed, verbose=False)
    validate_every = min(config.validate_every, plan.num_steps)
    return lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision=config.precision,
        deterministic=True,
        max_steps=plan.num_steps,
        max_epochs=1,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=validate_every * config.accumulate,
        num_sanity_val_steps=0,
        logger=WandbLogger(experiment=place.wandb_run),
        callbacks=[
            *callbacks,
            ResumeCallback(
                place.resume_dir, every=config.checkpoint_every, validate_every=validate_every
            ),
            StepBar(place.name),
        ],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place.resume_dir,
    )


def _metrics(plan: Plan, curves: CurveRecorder, stability: StabilityCallback) -> dict[str, Any]:
    tail = curves.steps[-max(1, len(curves.steps) // 20) :]
    last_signals: dict[str, Any] = next(
        (row for row in reversed(curves.steps) if "flip_rate" in row), {}
    )
    metrics = {
        "train/loss_nats": _mean(tail, "loss_nats"),
        "validation/loss_nats": curves.validations[-1]["loss_nats"],
        "train/tokens_per_s": _median(curves.steps, "tokens_per_s"),
        "train/mfu": _median(curves.steps, "mfu"),
        "train/num_tokens": curves.steps[-1]["tokens"],
        "train/num_steps": plan.num_steps,
        "stability/num_spikes": sum(event["kind"] == "spike" for event in stability.events),
        "stability/num_rollbacks": stability.num_rollbacks,
    }
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
