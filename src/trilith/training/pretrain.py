"""Pretraining: a model on the token shards, dense or on a grid, from fresh or given weights."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from trilith.files import is_first_process, remove
from trilith.kernels import chosen_isa
from trilith.model import (
    Checkpoint,
    ModelConfig,
    Transformer,
    build_model,
    count_parameters,
    move_to_grid,
    require_shape,
    save_checkpoint,
)
from trilith.quant import QuantConfig
from trilith.tokens import open_split
from trilith.training.batches import TokenWindows
from trilith.training.fit import Plan, RunPlace, TrainConfig, fit
from trilith.training.memory import TrainingSetup, state_bytes
from trilith.training.module import next_token_objective
from trilith.training.recipe import Recipe
from trilith.training.room import Need, require_room, resume_bytes, warn_of_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Twin:
    """How one of the twins trains: on a grid, or dense with `quant` null, by its own recipe."""

    quant: QuantConfig | None
    recipe: Recipe


@dataclass(frozen=True)
class PretrainConfig:
    """Optimizer steps of both twins, and what each has of its own.

    `start_from` is a checkpoint of any kind (`trilith.imports`) whose weights both start from.
    """

    num_steps: int
    start_from: str | None
    dense: Twin
    ternary: Twin

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"pretrain.num_steps={self.num_steps} must be at least 1")
        if self.dense.quant is not None or self.ternary.quant is None:
            raise ValueError("pretrain.dense.quant must be null, pretrain.ternary.quant must not")
        dense = self.dense.recipe
        if dense.dense_share or dense.ramp_share or dense.latent_noise:
            raise ValueError(
                "pretrain.dense.recipe: dense_share, ramp_share and latent_noise must be 0: it is "
                "dense anyway"
            )
        self.dense.recipe.check_length(self.num_steps)
        self.ternary.recipe.check_length(self.num_steps)


class Start(Protocol):
    """A checkpoint to go on from: `trilith.imports.Source`, or anything that knows as much."""

    @property
    def path(self) -> Path: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def tokenizer_sha256(self) -> str: ...
    @property
    def weights_sha256(self) -> dict[str, str]: ...
    def load(self) -> Checkpoint: ...


class PretrainPlan(NamedTuple):
    """What to train, for how many optimizer steps, and from what; None draws fresh weights."""

    model: ModelConfig
    twin: Twin
    num_steps: int
    start: Start | None = None


class _Beginning(NamedTuple):
    """The model as training finds it, and the provenance that it brings along."""

    model: Transformer
    provenance: dict[str, Any]


def pretrain(
    plan: PretrainPlan, *, config: TrainConfig, tokens_dir: Path, out_dir: Path, place: RunPlace
) -> dict[str, Any]:
    """Train a model and write its checkpoint; return flat metrics.

    Raises:
        ValueError: the shards hold another vocabulary or too few tokens, the start is of another
            shape or tokenizer, or training is unstable.
    """
    train = open_split(tokens_dir, "train")
    validation = open_split(tokens_dir, "validation")
    check_shape(plan.model, config, vocab_size=train.vocab_size)
    num_ranks = place.trainer.world_size
    windows = training_windows(train.tokens, config, num_ranks=num_ranks, seed=place.seed)
    held_out = validation_windows(validation.tokens, config)
    _check_resources(plan, config, place, out_dir)
    torch.manual_seed(place.seed)
    model, before = _beginning(plan, tokens_dir=tokens_dir, tokenizer_sha256=train.tokenizer_sha256)
    recipe = plan.twin.recipe
    objective = partial(next_token_objective, z_loss=recipe.z_loss)
    fit_plan = Plan(plan.num_steps, recipe, objective, windows, held_out)
    metrics = fit(model, plan=fit_plan, config=config, place=place)
    provenance = before | {
        "name": place.name,
        "reference": "dense",
        "num_tokens_seen": before.get("num_tokens_seen", 0) + metrics["train/result_tokens"],
        "num_steps": before.get("num_steps", 0) + metrics["train/result_step"],
        "seed": place.seed,
    }
    if is_first_process():
        checkpoint = Checkpoint(model, plan.twin.quant, train.tokenizer_sha256, provenance)
        save_checkpoint(checkpoint, out_dir)
        remove(place.resume_dir)
    metrics["model/num_parameters"] = count_parameters(plan.model).total
    log.info(
        "%s: %d steps, %d tokens, validation loss %.3f nats, %.0f s -> %s",
        place.name,
        plan.num_steps,
        metrics["train/num_tokens"],
        metrics["validation/loss_nats"],
        metrics["wall_s"],
        out_dir,
    )
    return metrics


def _beginning(plan: PretrainPlan, *, tokens_dir: Path, tokenizer_sha256: str) -> _Beginning:
    """Draw fresh weights, or load those of the start on the grid of the twin."""
    start, quant = plan.start, plan.twin.quant
    if start is None:
        return _Beginning(build_model(plan.model, quant), {})
    require_shape(start.model, plan.model, origin=f"pretrain.start_from={start.path}")
    if start.tokenizer_sha256 != tokenizer_sha256:
        raise ValueError(
            f"pretrain.start_from={start.path} has the tokenizer {start.tokenizer_sha256[:12]} and "
            f"{tokens_dir} was made with {tokenizer_sha256[:12]} (SHA-256); set "
            "tokenizer.from_file to the model's own tokenizer and run tokenize again"
        )
    checkpoint = start.load()
    # Scales of the same grid are kept as they are: the model goes on exactly where it stood.
    same = checkpoint.quant == quant
    model = checkpoint.model if same else move_to_grid(checkpoint.model, quant)
    origin = {"name": checkpoint.provenance.get("name"), "weights": start.weights_sha256}
    return _Beginning(model.train(), checkpoint.provenance | {"started_from": origin})


def check_shape(model: ModelConfig, config: TrainConfig, *, vocab_size: int) -> None:
    """Refuse a model that does not fit the shards or the training section.

    Raises:
        ValueError: another vocabulary, or a training context longer than the model's.
    """
    if model.vocab_size != vocab_size:
        raise ValueError(
            f"model.vocab_size={model.vocab_size}, but the token shards have {vocab_size} ids; "
            "give both the same tokenizer.vocab_size and run tokenize again"
        )
    if config.context > model.context:
        raise ValueError(
            f"train.context={config.context} is longer than model.context={model.context}; "
            "lower the first or raise the second"
        )


def training_windows(
    tokens: np.ndarray, config: TrainConfig, *, num_ranks: int, seed: int
) -> TokenWindows:
    """Windows to train on, in an order drawn from the seed.

    Raises:
        ValueError: there are too few of them for one optimizer step.
    """
    windows = TokenWindows(
        tokens, context=config.context, batch_size=config.micro_batch_size, seed=seed
    )
    num_sequences = config.micro_batch_size * config.accumulate * num_ranks
    if num_sequences > windows.num_windows:
        raise ValueError(
            f"a step takes train.micro_batch_size={config.micro_batch_size} times accumulate="
            f"{config.accumulate} on {num_ranks} devices, {num_sequences} windows, and the "
            f"training split has {windows.num_windows} of context={config.context}; lower one of "
            "them or use a larger corpus"
        )
    return windows


def _check_resources(
    plan: PretrainPlan, config: TrainConfig, place: RunPlace, out_dir: Path
) -> None:
    """Refuse a run that the disk cannot hold; warn of one that the memory may not."""
    optimizer = plan.twin.recipe.optimizer
    state = state_bytes(plan.model, quant=plan.twin.quant, optimizer=optimizer)
    if is_first_process():
        folder = place.resume_dir
        resume = resume_bytes(state, folder, num_steps=plan.num_steps, config=config)
        require_room([Need(folder, resume), Need(out_dir, state.weights)])
        if place.trainer.strategy != "fsdp":
            warn_of_memory(_setup(plan, config), name=place.name)


def _setup(plan: PretrainPlan, config: TrainConfig) -> TrainingSetup:
    on_gpu = torch.cuda.is_available()
    is_native = config.acceleration.arithmetic == "int8" and chosen_isa() is not None
    return TrainingSetup(
        model=plan.model,
        quant=plan.twin.quant,
        optimizer=plan.twin.recipe.optimizer,
        precision=config.precision,
        context=config.context,
        batch_size=config.micro_batch_size,
        accumulate=config.accumulate,
        device="cuda" if on_gpu else "cpu",
        arithmetic="tiles" if is_native and not on_gpu else "tensors",
        kept="block inputs" if config.acceleration.checkpoint_activations else "everything",
        z_loss=plan.twin.recipe.z_loss,
    )


def validation_windows(tokens: np.ndarray, config: TrainConfig) -> TokenWindows:
    """The same held-out windows at every validation of every run."""
    return TokenWindows(tokens, context=config.context, batch_size=config.micro_batch_size, seed=0)
