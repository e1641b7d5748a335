"""Evolution: the dense twin down the grids, beside a dense control on the same tokens.

Each phase starts from the latent weights of the one before. The control does the same phases
without a grid, so that more training is never taken for recovery.
"""

import copy
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trilith.evolution import AnswerRows, fit_to_grid, forward_kl, grid_sqnr_db
from trilith.files import is_first_process, read_json, remove, replacing, write_json
from trilith.model import Checkpoint, Transformer, load_checkpoint, move_to_grid, save_checkpoint
from trilith.quant import QuantConfig
from trilith.tokens import open_split
from trilith.training.answer_loss import answer_losses, warn_of_overfitting
from trilith.training.batches import IGNORED, Batch, BatchSource, MaskedRows, TokenWindows
from trilith.training.devices import wait_for_all
from trilith.training.evolve_config import EvolveConfig
from trilith.training.fit import Plan, RunPlace, TrainConfig, fit
from trilith.training.memory import state_bytes
from trilith.training.module import Loss, Objective, cross_entropy, z_penalty
from trilith.training.pretrain import check_shape, training_windows, validation_windows
from trilith.training.room import Need, require_room, resume_bytes

log = logging.getLogger(__name__)

# Prefixes of the models that come out, one of each for every phase.
EVOLVED = "evolved"
CONTROL = "dense_continued"


class EvolveBatch(NamedTuple):
    """Plain text and answers of one step; they differ in length, so they stay apart."""

    plain: Batch
    answers: Batch


class PlainAndAnswers:
    """Gives both parts of the batch at a position."""

    def __init__(self, plain: BatchSource, answers: BatchSource, *, first: int) -> None:
        self.plain = plain
        self.answers = answers
        self.first = first

    def batch(self, position: int) -> EvolveBatch:
        """Return the batch at `position`, counted from `first` over all epochs."""
        place = self.first + position
        return EvolveBatch(self.plain.batch(place), self.answers.batch(place))


class EvolveInputs(NamedTuple):
    """What the evolution starts from.

    `held_out` are answers of the validation split, maybe none; `licence` is that of foreign
    instructions.
    """

    twin: Checkpoint
    tokens_dir: Path
    answers: AnswerRows
    held_out: AnswerRows
    licence: str | None = None


class _Job(NamedTuple):
    """One phase of one arm: which model comes out, and on which grid it trains."""

    name: str
    reference: str
    quant: QuantConfig | None
    num_steps: int
    first_step: int


class _Setting(NamedTuple):
    """What all phases of one evolution share."""

    inputs: EvolveInputs
    config: EvolveConfig
    train: TrainConfig
    place: RunPlace
    calibration_NT: Tensor


def evolve(
    inputs: EvolveInputs,
    *,
    config: EvolveConfig,
    train: TrainConfig,
    out_dir: Path,
    place: RunPlace,
) -> dict[str, Any]:
    """Run both arms through all phases; write one checkpoint folder a model into `out_dir`.

    Finished phases of an interrupted run stay beside the resume state and are not repeated.

    Returns:
        Flat metrics, each behind the name of its model.

    Raises:
        ValueError: the shards are not those of the twin, or windows or answers are too long for it.
    """
    _check_inputs(inputs, config, train)
    setting = _Setting(inputs, config, train, place, _calibration(inputs, config, train, place))
    if is_first_process():
        require_room(_needs(setting, out_dir))
    metrics: dict[str, Any] = {
        "answers/train": inputs.answers.num_examples,
        "answers/num_rows": len(inputs.answers.tokens),
        "answers/num_cut": inputs.answers.num_cut,
        "answers/num_dropped": inputs.answers.num_dropped,
    }
    for arm in (EVOLVED, CONTROL):
        checkpoint = inputs.twin
        for job in _jobs(config, arm):
            folder = place.resume_dir / "finished" / job.name
            if not folder.exists():
                _run_phase(job, checkpoint, setting, folder)
            checkpoint = load_checkpoint(folder, made_by="evolve")
            phase_metrics = read_json(folder / "curves" / "metrics.json", made_by="evolve")
            metrics |= {f"{job.name}/{key}": value for key, value in phase_metrics.items()}
    # Until here the others may still read a finished phase.
    wait_for_all()
    if is_first_process():
        _hand_over(place.resume_dir / "finished", out_dir, place.metrics_dir / "curves")
        remove(place.resume_dir)
    return metrics


def _check_inputs(inputs: EvolveInputs, config: EvolveConfig, train: TrainConfig) -> None:
    shard = open_split(inputs.tokens_dir, "train")
    model = inputs.twin.model.config
    if inputs.twin.tokenizer_sha256 != shard.tokenizer_sha256:
        raise ValueError(
            f"{inputs.tokens_dir} was made with another tokenizer than the one the dense twin was "
            "trained with; run pretrain again, or restore its tokenizer"
        )
    check_shape(model, train, vocab_size=shard.vocab_size)
    if config.answer_length > model.context:
        raise ValueError(
            f"evolve.answer_length={config.answer_length} is longer than model.context="
            f"{model.context}; lower the first or raise the second"
        )


def _needs(setting: _Setting, out_dir: Path) -> list[Need]:
    """What the run will write: the state of a phase, all models beside it, and again at the end."""
    config, folder = setting.config, setting.place.resume_dir
    model = setting.inputs.twin.model.config
    resume, results = 0, 0
    for job in _jobs(config, EVOLVED) + _jobs(config, CONTROL):
        state = state_bytes(model, quant=job.quant, optimizer=config.recipe.optimizer)
        phase = resume_bytes(
            state, folder / job.name, num_steps=job.num_steps, config=setting.train
        )
        resume = max(resume, phase)
        results += state.weights
    finished = sum(path.stat().st_size for path in folder.glob("finished/*/model.safetensors"))
    return [Need(folder, resume + max(0, results - finished)), Need(out_dir, results)]


def _jobs(config: EvolveConfig, arm: str) -> list[_Job]:
    jobs = []
    first_step = 0
    for phase_name, phase in config.phases.items():
        quant = phase.quant if arm == EVOLVED else None
        reference = f"{CONTROL}_{phase_name}"
        jobs.append(_Job(f"{arm}_{phase_name}", reference, quant, phase.num_steps, first_step))
        first_step += phase.num_steps
    return jobs


def _run_phase(job: _Job, before: Checkpoint, setting: _Setting, folder: Path) -> None:
    """Train one phase; save checkpoint and curves as a folder that every process then sees."""
    inputs, train, place = setting.inputs, setting.train, setting.place
    curves_dir = place.resume_dir / "curves" / job.name
    model, fitted = _on_grid(job, before.model, setting)
    plan = Plan(
        job.num_steps,
        setting.config.recipe,
        _objective(setting, job),
        _batches(setting, job.first_step),
        validation_windows(open_split(inputs.tokens_dir, "validation").tokens, train),
    )
    phase_place = place._replace(
        name=job.name, resume_dir=place.resume_dir / job.name, metrics_dir=curves_dir
    )
    metrics = fitted
    before_training = answer_losses(model, seen=inputs.answers, held_out=inputs.held_out)
    if job.num_steps:
        metrics |= fit(model, plan=plan, config=train, place=phase_place)
    else:
        metrics |= _score(model, plan.validation, num_batches=train.validation_batches)
    losses = answer_losses(model, seen=inputs.answers, held_out=inputs.held_out)
    warn_of_overfitting(job.name, before_training, losses, alert=place.wandb_run.alert)
    metrics |= losses.metrics()
    num_steps, num_tokens = metrics["train/result_step"], metrics["train/result_tokens"]
    num_rows = num_steps * _batches_per_step(setting) * setting.config.answer_rows
    num_answers = num_rows * inputs.answers.num_examples // len(inputs.answers.tokens)
    seen = before.provenance
    provenance = seen | {
        "name": job.name,
        "reference": job.reference,
        "num_tokens_seen": seen["num_tokens_seen"] + num_tokens,
        "num_answers_seen": seen.get("num_answers_seen", 0) + num_answers,
        "num_steps": seen["num_steps"] + num_steps,
    }
    if inputs.licence is not None:
        provenance["instructions_licence"] = inputs.licence
    if is_first_process():
        result = Checkpoint(model, job.quant, before.tokenizer_sha256, provenance)
        write_json(curves_dir / "metrics.json", metrics)
        with replacing(folder) as partial:
            save_checkpoint(result, partial)
            shutil.move(curves_dir, partial / "curves")
        remove(phase_place.resume_dir)
    wait_for_all()
    log.info("%s: validation loss %.3f nats", job.name, metrics["validation/loss_nats"])


@torch.no_grad()
def _score(model: Transformer, validation: BatchSource, *, num_batches: int) -> dict[str, float]:
    """What `fit` would say of a model that is not trained."""
    model.eval()
    batches = [validation.batch(position) for position in range(num_batches)]
    losses = [float(cross_entropy(model(batch.inputs_BT), batch)) for batch in batches]
    nothing = {"train/num_steps": 0, "train/result_step": 0, "train/result_tokens": 0}
    return {"validation/loss_nats": sum(losses) / len(losses), **nothing}


class _Start(NamedTuple):
    """The model that a phase starts from, and what is known of its fit."""

    model: Transformer
    metrics: dict[str, float]


def _on_grid(job: _Job, before: Transformer, setting: _Setting) -> _Start:
    if job.quant is None:
        return _Start(move_to_grid(before, None), {})
    method = setting.config.fit
    model, errors = fit_to_grid(before, job.quant, method=method, windows_NT=setting.calibration_NT)
    metrics = {
        "quant/fitted_sqnr_db": grid_sqnr_db(model),
        "fit/output_error": sum(errors.values()) / len(errors),
    }
    metrics |= {f"fit/output_error/{name}": error for name, error in errors.items()}
    setting.place.wandb_run.log({f"{job.name}/{key}": value for key, value in metrics.items()})
    return _Start(model, metrics)


def _calibration(
    inputs: EvolveInputs, config: EvolveConfig, train: TrainConfig, place: RunPlace
) -> Tensor:
    """Windows of the training split, drawn from the seed, that fits are made and measured on."""
    tokens = open_split(inputs.tokens_dir, "train").tokens
    num_windows = config.calibration_windows
    windows = TokenWindows(tokens, context=train.context, batch_size=num_windows, seed=place.seed)
    return windows.batch(0).inputs_BT


def _hand_over(finished: Path, out_dir: Path, curves_dir: Path) -> None:
    """Put the curves of all phases with the metrics and the checkpoints into the output.

    Copied, not moved: whoever is stopped here finds all phases finished the next time.
    """
    with replacing(curves_dir) as partial:
        for folder in sorted(finished.iterdir()):
            shutil.copytree(folder / "curves", partial / folder.name)
    with replacing(out_dir) as partial:
        shutil.copytree(finished, partial, ignore=shutil.ignore_patterns("curves"))


def _objective(setting: _Setting, job: _Job) -> Objective:
    """Cross-entropy of plain text and answers, and for the evolved arm the pull of the twin."""
    teacher = _on_device(setting.inputs.twin.model)
    z_loss = setting.config.recipe.z_loss
    kl_weight = 0.0 if job.quant is None else setting.config.kl_weight

    def objective(model: Transformer, batch: EvolveBatch) -> Loss:
        plain_logits = model(batch.plain.inputs_BT)
        plain = cross_entropy(plain_logits, batch.plain)
        answer_logits = model(batch.answers.inputs_BT, segments_BT=batch.answers.segments_BT)
        answers = cross_entropy(answer_logits, batch.answers)
        num_plain = counted_targets(batch.plain)
        num_answers = counted_targets(batch.answers)
        total = (plain * num_plain + answers * num_answers) / (num_plain + num_answers)
        if z_loss:
            total = total + z_loss * z_penalty(plain_logits, batch.plain)
        if kl_weight:
            with torch.no_grad():
                teacher_logits = teacher(batch.plain.inputs_BT.device)(batch.plain.inputs_BT)
            total = total + kl_weight * forward_kl(plain_logits, teacher_logits)
        return Loss(total, plain.detach())

    return objective


def _on_device(model: Transformer) -> Callable[[torch.device], Transformer]:
    """Hand out the model on a device; what has to move is copied: the original starts phases."""

    @cache
    def placed(device: torch.device) -> Transformer:
        return model if device.type == "cpu" else copy.deepcopy(model).to(device)

    return placed


def counted_targets(batch: Batch) -> Tensor:
    """Number of targets that count in the loss."""
    return (batch.targets_BT != IGNORED).sum()


def _batches(setting: _Setting, first_step: int) -> PlainAndAnswers:
    """Batches that go on where the phases before stopped; both arms see the same."""
    inputs, train, seed = setting.inputs, setting.train, setting.place.seed
    tokens = open_split(inputs.tokens_dir, "train").tokens
    plain = training_windows(tokens, train, setting.place, seed=seed + 1)
    answers = MaskedRows(
        inputs.answers.tokens,
        inputs.answers.answer_mask,
        batch_size=setting.config.answer_rows,
        seed=seed + 1,
        segments=inputs.answers.segments,
    )
    return PlainAndAnswers(plain, answers, first=first_step * _batches_per_step(setting))


def _batches_per_step(setting: _Setting) -> int:
    return setting.train.accumulate * setting.place.trainer.world_size
