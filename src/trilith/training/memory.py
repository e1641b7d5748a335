"""What a training run needs of the device's memory, part by part, from the shape of the model.

The rule for activations is what autograd keeps of one micro-batch from forward to backward, counted
by tensor below; tests hold it against what is really saved and against the peak of a real run.
Letters as in `attention`: D width, C head width, V vocabulary; M is the width of the MLP.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch

from trilith.model import ModelConfig, Transformer, build_model
from trilith.quant import QuantConfig, num_scales
from trilith.training.recipe import OptimizerName

Precision = Literal["32-true", "bf16-mixed"]
# What a block keeps for its backward pass: all of it, or its input alone (it runs again).
Kept = Literal["everything", "block inputs"]

_FLOAT32 = 4
_BFLOAT16 = 2


@dataclass(frozen=True)
class TrainingSetup:
    """All that decides how much memory a run takes."""

    model: ModelConfig
    quant: QuantConfig | None
    optimizer: OptimizerName
    precision: Precision
    context: int
    batch_size: int
    accumulate: int
    device: Literal["cpu", "cuda"]
    kept: Kept = "everything"

    def __post_init__(self) -> None:
        for key in ("context", "batch_size", "accumulate"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.precision not in get_args(Precision) or self.optimizer not in get_args(
            OptimizerName
        ):
            raise ValueError(
                f"precision={self.precision!r} must be one of {', '.join(get_args(Precision))}, "
                f"optimizer={self.optimizer!r} one of {', '.join(get_args(OptimizerName))}"
            )


class TrainingMemory(NamedTuple):
    """Bytes at the peak of an optimizer step.

    Attributes:
        weights: float32 latent weights and the scales kept beside them.
        gradients: float32, one for each weight.
        optimizer: its state.
        snapshot: weights and optimizer state to roll back to, which lie in the host's memory.
        weight_copies: weights on the grid or in bfloat16, kept from forward to backward.
        activations: what autograd keeps of one micro-batch.
        working: what else lives at the worst moment: logits and their gradient, or an MLP's.
    """

    weights: int
    gradients: int
    optimizer: int
    snapshot: int
    weight_copies: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return sum(self)


class StateBytes(NamedTuple):
    """Bytes of what a run carries from step to step, and of a snapshot of it."""

    weights: int
    optimizer: int
    snapshot: int


def plan_training(setup: TrainingSetup) -> TrainingMemory:
    """Plan the memory of a training step on one device."""
    model = _on_meta(setup.model)
    state = state_bytes(model, quant=setup.quant, optimizer=setup.optimizer)
    gradients = _FLOAT32 * sum(weight.numel() for weight in model.parameters())
    copies = _weight_copies(model, setup)
    activations = _activation_bytes(setup)
    snapshot = state.snapshot if setup.device == "cpu" else 0
    # A new snapshot is made, between two steps, before the old one goes.
    working = max(_working_bytes(setup, gradients), snapshot - copies - activations)
    return TrainingMemory(
        state.weights, gradients, state.optimizer, snapshot, copies, activations, working
    )


def state_bytes(
    model: Transformer, *, quant: QuantConfig | None, optimizer: OptimizerName
) -> StateBytes:
    """Bytes of the weights with their scales, and of the optimizer's state.

    AdamW keeps two moments of each weight; Muon one of each projection, and AdamW's of the rest.
    """
    numel = {name: weight.numel() for name, weight in model.named_parameters()}
    projections = {name: model.get_parameter(name) for name in numel if _is_projection(name)}
    scales = 0
    if quant is not None and quant.scale_rule == "least_squares":
        scales = sum(num_scales(weight, quant) for weight in projections.values())
    moments = 2 * sum(numel.values())
    if optimizer == "muon":
        moments -= sum(weight.numel() for weight in projections.values())
    weights = sum(numel.values()) + scales
    # A tied head is copied beside the embedding that it is.
    twice = model.head.weight.numel() if model.config.tied_head else 0
    return StateBytes(
        _FLOAT32 * weights, _FLOAT32 * moments, _FLOAT32 * (weights + moments + twice)
    )


@cache
def _on_meta(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return build_model(config, None)


def _is_projection(name: str) -> bool:
    return name.startswith("blocks.") and not name.endswith("norm.weight")


def _activation_bytes(setup: TrainingSetup) -> int:
    each = _block_bytes(setup) if setup.kept == "everything" else _FLOAT32 * setup.model.width
    per_token = setup.model.num_layers * each + _head_bytes(setup)
    return setup.batch_size * setup.context * per_token


def _working_bytes(setup: TrainingSetup, gradients: int) -> int:
    """Bytes of what comes and goes, at its most, beside all gradients."""
    config = setup.model
    num_tokens = setup.batch_size * setup.context
    logits = _FLOAT32 * num_tokens * config.vocab_size
    # An MLP's backward pass, after the log-probabilities have gone; norms compute in float32.
    widths = 3 if _stream_bytes(setup) == _BFLOAT16 else 2
    block = _FLOAT32 * widths * config.mlp_width
    if setup.kept == "block inputs":
        block += _block_bytes(setup) + _FLOAT32 * 2 * config.width
    # Gradients of the step before live until the backward pass; one of the logits is made there.
    held = gradients if setup.accumulate > 1 else 0
    return max(logits, held - gradients + 2 * logits, num_tokens * block - logits)


def _weight_copies(model: Transformer, setup: TrainingSetup) -> int:
    """Bytes of the weights that a forward pass makes and the backward pass reads."""
    is_mixed = setup.precision == "bf16-mixed"
    config = setup.model
    copies = _BFLOAT16 * config.vocab_size * config.width if is_mixed else 0
    per_weight = _FLOAT32 if setup.quant is not None else _BFLOAT16 if is_mixed else 0
    return copies + per_weight * sum(
        weight.numel() for name, weight in model.named_parameters() if _is_projection(name)
    )


def _block_bytes(setup: TrainingSetup) -> int:
    """Bytes that one block keeps for each token."""
    return _attention_bytes(setup) + _mlp_bytes(setup)


def _attention_bytes(setup: TrainingSetup) -> int:
    config = setup.model
    width, keys = config.width, config.num_kv_heads * config.head_width
    stream = _stream_bytes(setup)
    mixing = _BFLOAT16 if setup.precision == "bf16-mixed" else _FLOAT32
    is_grouped = config.num_heads > config.num_kv_heads
    # The norm's input, and what qkv reads.
    kept = _norm_bytes(width, _FLOAT32) + _input_bytes(setup, width, _FLOAT32)
    if config.qk_norm:
        kept += _FLOAT32 * (config.num_heads + config.num_kv_heads)
    # Values are a part of the projection unless they are repeated or rounded on the way.
    is_view = not is_grouped and stream == mixing
    if config.qk_norm or is_view:
        kept += stream * (width + 2 * keys)
    # Queries, keys, the attention's output and its log-sum-exp.
    kept += mixing * (2 * width + (width if is_grouped else keys)) + _FLOAT32 * config.num_heads
    if not is_view:
        kept += mixing * (width if is_grouped else keys)
    if config.sub_norm:
        kept += _FLOAT32 + _input_bytes(setup, width, mixing)
    elif setup.quant is not None and setup.quant.activation_bits is not None:
        kept += _input_bytes(setup, width, mixing)
    return kept


def _mlp_bytes(setup: TrainingSetup) -> int:
    config = setup.model
    width, hidden = config.width, config.mlp_width
    stream = _stream_bytes(setup)
    kept = _norm_bytes(width, _FLOAT32) + _input_bytes(setup, width, _FLOAT32)
    if config.is_gated:
        # Gate and value, and the activated gate (squared ReLU keeps the ReLU as well).
        kept += stream * hidden * (3 if config.mlp == "swiglu" else 4)
    else:
        kept += stream * hidden
    if config.sub_norm:
        return kept + _norm_bytes(hidden, stream) + _input_bytes(setup, hidden, stream)
    return kept + _input_bytes(setup, hidden, stream)


def _head_bytes(setup: TrainingSetup) -> int:
    """Bytes that embedding, last norm, head and loss keep for each token."""
    config = setup.model
    read = _BFLOAT16 if setup.precision == "bf16-mixed" else _FLOAT32
    token_ids = 2 * 8
    log_probabilities = _FLOAT32 * config.vocab_size
    return _norm_bytes(config.width, _FLOAT32) + read * config.width + log_probabilities + token_ids


def _norm_bytes(width: int, bytes_per_value: int) -> int:
    """A norm keeps its input and one reciprocal for each token."""
    return bytes_per_value * width + _FLOAT32


def _input_bytes(setup: TrainingSetup, width: int, bytes_per_value: int) -> int:
    """What a projection keeps of its input."""
    if setup.quant is None:
        return width * (_BFLOAT16 if setup.precision == "bf16-mixed" else _FLOAT32)
    if setup.quant.activation_bits is None:
        return width * bytes_per_value
    # Whole numbers and one scale for each token.
    return width * _FLOAT32 + _FLOAT32


def _stream_bytes(setup: TrainingSetup) -> int:
    """Bytes of a value that qkv and up give out."""
    if setup.precision == "bf16-mixed" and setup.quant is None:
        return _BFLOAT16
    return _FLOAT32
