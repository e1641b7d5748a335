"""A toy training run: a stream of digits that repeats, a small model, a place to run in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trilith.model import ModelConfig, Transformer, build_model
from trilith.quant import QuantConfig
from trilith.training.acceleration import AccelerationConfig
from trilith.training.batches import TokenWindows
from trilith.training.fit import Plan, RunPlace, TrainConfig
from trilith.training.module import next_token_objective
from trilith.training.recipe import Recipe
from trilith.training.stability import StabilityConfig
from trilith.training.tracking import TrackingConfig, start_run

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
STABILITY = StabilityConfig(
    window=32,
    min_history=8,
    spike_sigmas=10.0,
    grid_every=5,
    max_zero_drift=0.15,
    max_scale_factor=8.0,
    snapshot_every=5,
    lr_factor=0.5,
    recovery_steps=4,
    max_rollbacks=2,
)
TRAIN = TrainConfig(
    context=16,
    micro_batch_size=4,
    accumulate=1,
    precision="32-true",
    acceleration=AccelerationConfig("int8", compile=False, checkpoint_activations=False),
    validate_every=10,
    validation_batches=2,
    checkpoint_every=5,
    keep_last=2,
    result="last",
    stability=STABILITY,
)
RECIPE = Recipe(
    optimizer="adamw",
    schedule="cosine",
    peak_lr=1e-2,
    reference_width=None,
    warmup_steps=3,
    final_lr_share=0.1,
    decay_share=None,
    second_stage_lr_share=None,
    weight_decay=0.1,
    second_half_weight_decay=0.0,
    beta1=0.9,
    beta2=0.95,
    clip_norm=1.0,
    dense_share=0.0,
    ramp_share=0.0,
    z_loss=0.0,
    latent_noise=0.0,
)

Fit = Callable[..., dict[str, Any]]


def pattern(num_tokens: int) -> np.ndarray:
    """Tokens that can be learned: each follows from the two before."""
    tokens = [1, 2]
    while len(tokens) < num_tokens:
        tokens.append((tokens[-1] * 3 + tokens[-2]) % 37)
    return np.array(tokens, dtype=np.uint16)


def toy_model(toy: ModelConfig, quant: QuantConfig | None = TERNARY) -> Transformer:
    torch.manual_seed(0)
    return build_model(toy, quant)


@pytest.fixture
def plan() -> Plan:
    tokens = pattern(2000)
    batches = TokenWindows(tokens[:1600], context=16, batch_size=4, seed=0)
    held_out = TokenWindows(tokens[1600:], context=16, batch_size=4, seed=0)
    return Plan(20, RECIPE, next_token_objective, batches, held_out)


@pytest.fixture
def place(tmp_path: Path) -> RunPlace:
    torch.set_num_threads(1)
    disabled = TrackingConfig("disabled", "trilith", str(tmp_path / "runs"))
    return RunPlace(
        name="toy",
        resume_dir=tmp_path / "resume",
        metrics_dir=tmp_path / "metrics",
        wandb_run=start_run(disabled, name="toy", run_id="toy", settings={}),
        peak_flops=1e9,
        seed=0,
    )
