"""What a training run needs of the device's memory, part by part, from the shape of the model.

The rule for activations is what autograd keeps of one micro-batch from forward to backward, counted
by tensor below; tests hold it against what is really saved and against the peak of a real run.
Letters as in `attention`: D width, C head width, V vocabulary; M is the width of the MLP.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from trilith.kernels import layouts_for, native_bytes
from trilith.model import ModelConfig, model_on_meta, projection_weights
from trilith.quant import QuantConfig, num_scales
from trilith.training.recipe import OptimizerName

Precision = Literal["32-true", "bf16-mixed"]
# What a block keeps for its backward pass: all of it, or its input alone (it runs again).
Kept = Literal["everything", "block inputs"]
# What products on a grid compute with: tensors, or native kernels with tiles of their own.
Arithmetic = Literal["tensors", "tiles"]

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
    arithmetic: Arithmetic
    kept: Kept
    z_loss: float

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
        weight_copies: weights on the grid, kept for a step, or in bfloat16, for a micro-batch.
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
    """Bytes of weights with their scales, of gradients, of the optimizer, of a snapshot to keep."""

    weights: int
    gradients: int
    optimizer: int
    snapshot: int


def plan_training(setup: TrainingSetup) -> TrainingMemory:
    """Plan the memory of a training step on one device."""
    state = state_bytes(setup.model, quant=setup.quant, optimizer=setup.optimizer)
    copies, activations = _weight_copies(setup), _activation_bytes(setup)
    snapshot = state.snapshot if setup.device == "cpu" else 0
    # A new snapshot is made, between two steps, before the old one goes.
    working = max(_working_bytes(setup, state.gradients), snapshot - copies - activations)
    return TrainingMemory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        snapshot=snapshot,
        weight_copies=copies,
        activations=activations,
        working=working,
    )


def state_bytes(
    config: ModelConfig, *, quant: QuantConfig | None, optimizer: OptimizerName
) -> StateBytes:
    """Bytes of what a run carries from step to step.

    AdamW keeps two moments of each trained number; Muon one of each projection, and AdamW's of the
    rest. A learned scale is trained; a fitted one is kept.
    """
    model = model_on_meta(config)
    num_weights = sum(weight.numel() for weight in model.parameters())
    rule = None if quant is None else quant.scale_rule
    scales = sum(num_scales(weight, quant) for weight in projection_weights(model)) if quant else 0
    trained = num_weights + (scales if rule == "learned" else 0)
    moments = 2 * trained
    if optimizer == "muon":
        moments -= sum(weight.numel() for weight in projection_weights(model))
    weights = trained + (scales if rule == "least_squares" else 0)
    # A tied head is copied beside the embedding that it is.
    twice = model.head.weight.numel() if config.tied_head else 0
    counts = (weights, trained, moments, weights + moments + twice)
    return StateBytes(*(_FLOAT32 * count for count in counts))


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
    widths = 3 if _value_bytes(setup) == _BFLOAT16 else 2
    block = _FLOAT32 * widths * config.mlp_width
    gone = 0
    if setup.kept == "block inputs":
        block += _block_bytes(setup) + _FLOAT32 * 2 * config.width
        # Autocast drops the blocks' weights after the forward pass, and makes them again in turn.
        gone = _rounded_blocks(setup) * (config.num_layers - 1) // config.num_layers
    # Gradients of the step before live until the backward pass; one of the logits is made there.
    held = gradients if setup.accumulate > 1 else 0
    return max(logits, held - gradients + 2 * logits - gone, num_tokens * block - logits - gone)


def _rounded_blocks(setup: TrainingSetup) -> int:
    """Bytes of the projections that autocast rounds for a micro-batch."""
    if setup.quant is not None or setup.precision == "32-true":
        return 0
    return _BFLOAT16 * sum(
        weight.numel() for weight in projection_weights(model_on_meta(setup.model))
    )


def _weight_copies(setup: TrainingSetup) -> int:
    """Bytes of the weights that forward passes make and backward passes read."""
    model, quant = model_on_meta(setup.model), setup.quant
    projections = projection_weights(model)
    num_weights = sum(weight.numel() for weight in projections)
    is_mixed = setup.precision == "bf16-mixed"
    head = _BFLOAT16 * model.head.weight.numel() if is_mixed else 0
    if quant is None:
        return head + _rounded_blocks(setup)
    scales = [num_scales(weight, quant) for weight in projections]
    # Whole numbers in int8, and their products with the scales.
    copies = head + (1 + _value_bytes(setup)) * num_weights + _FLOAT32 * sum(scales)
    if setup.arithmetic == "tensors" or quant.activation_bits is None:
        return copies
    layout = layouts_for(quant.levels)[0]
    return copies + sum(
        native_bytes((num_out, num_in), num_groups=max(1, scale // num_out), layout=layout)
        for (num_out, num_in), scale in zip((w.shape for w in projections), scales, strict=True)
    )


def _block_bytes(setup: TrainingSetup) -> int:
    """Bytes that one block keeps for each token."""
    return _attention_bytes(setup) + _mlp_bytes(setup)


def _attention_bytes(setup: TrainingSetup) -> int:
    config = setup.model
    width, keys = config.width, config.num_kv_heads * config.head_width
    is_grouped = config.num_heads > config.num_kv_heads
    # What qkv reads, queries, keys and the attention's output; keys as often as they are used.
    values = 3 * width + (width if is_grouped else keys)
    if config.qk_norm or not is_grouped:
        # The projection: norms read it, and values that are not repeated are a part of it.
        values += width + 2 * keys
    if is_grouped:
        values += width
    if config.sub_norm or _keeps_rounded_inputs(setup):
        values += width
    # Reciprocals of norms, and the log-sum-exp of each head.
    floats = 1 + config.num_heads
    floats += (config.num_heads + config.num_kv_heads) if config.qk_norm else 0
    floats += 1 if config.sub_norm else 0
    return _FLOAT32 * (width + floats) + _value_bytes(setup) * values


def _mlp_bytes(setup: TrainingSetup) -> int:
    config = setup.model
    hidden = config.mlp_width
    # Gate and value with the activated gate (squared ReLU keeps the ReLU as well), or the ReLU.
    widths = {"swiglu": 3, "gated_relu2": 4, "relu2": 1}[config.mlp]
    # What `down` reads, and the sub-norm before it.
    widths += 2 if config.sub_norm else 1
    floats = 1 + (1 if config.sub_norm else 0)
    values = config.width + widths * hidden
    return _FLOAT32 * (config.width + floats) + _value_bytes(setup) * values


def _head_bytes(setup: TrainingSetup) -> int:
    """Bytes that embedding, last norm, head and loss keep for each token."""
    config = setup.model
    token_ids = 2 * 8
    # Log-probabilities, and for the z-loss the logits.
    floats = config.width + 1 + config.vocab_size * (2 if setup.z_loss else 1)
    return token_ids + _FLOAT32 * floats + _value_bytes(setup) * config.width


def _keeps_rounded_inputs(setup: TrainingSetup) -> bool:
    return setup.quant is not None and setup.quant.activation_bits is not None


def _value_bytes(setup: TrainingSetup) -> int:
    """Bytes of a value in between: projections give out what autocast says."""
    return _BFLOAT16 if setup.precision == "bf16-mixed" else _FLOAT32
