"""Faults on purpose, to prove that training survives them: for tests and benchmarks alone."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trilith.model import Transformer
from trilith.quant import SCALE_NAMES
from trilith.training.batches import Batch
from trilith.training.module import Loss, Objective

FaultKind = Literal[
    "nan_gradient", "exploding_batch", "corrupted_tokens", "flipped_bit", "wrong_rate"
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

# How much larger the loss of an exploding batch is, and the learning rate of a wrong one.
EXPLOSION = 100.0
WRONG_RATE = 100.0
# The high bits of a float32's exponent. A flip lower down is smaller than an ordinary update.
HIGH_BITS = (30, 29, 28)


class FaultyObjective:
    """An objective under which the training steps named in `faults`, from 1, go wrong.

    nan_gradient: the gradient of one parameter is NaN. exploding_batch: loss and gradients are
    EXPLOSION times as large. corrupted_tokens: every token of the batch is replaced by a random
    one. flipped_bit: one of HIGH_BITS of one latent weight, embedding or gain is flipped.
    wrong_rate: the optimizer takes WRONG_RATE times the learning rate. Which parameter, weight,
    bit and tokens it is comes from the seed and the step. Steps have one micro-batch.
    """

    def __init__(self, objective: Objective, faults: Mapping[int, FaultKind], *, seed: int) -> None:
        self.objective = objective
        self.faults = faults
        self.seed = seed
        self.num_steps = 0
        self._optimizer: Optimizer | None = None
        self._hook = register_optimizer_step_pre_hook(self._see_optimizer)

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        """Return the loss of the batch; spoil what is to go wrong at this step."""
        if not model.training:
            return self.objective(model, batch)
        self.num_steps += 1
        kind = self.faults.get(self.num_steps)
        generator = torch.Generator().manual_seed(self.seed + self.num_steps)
        if kind == "corrupted_tokens":
            batch = _random_tokens(batch, model.config.vocab_size, generator)
        if kind == "flipped_bit":
            flip_bit(_any_parameter(model, generator), generator)
        if kind == "wrong_rate":
            self._spoil_rate()
        if kind == "nan_gradient":
            _spoil_gradient(_any_parameter(model, generator))
        loss = self.objective(model, batch)
        if kind == "exploding_batch":
            return Loss(loss.total * EXPLOSION, loss.nats * EXPLOSION)
        return loss

    def _see_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        # Loss and gradients are computed within the optimizer's step: this one is taking it.
        self._optimizer = optimizer
        if self.num_steps > max(self.faults, default=0):
            self._hook.remove()

    def _spoil_rate(self) -> None:
        """Multiply the learning rate of this step, after everyone has set it."""
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] *= WRONG_RATE


def flip_bit(weight: Tensor, generator: torch.Generator) -> None:
    """Flip one of HIGH_BITS of one float32 value of the weight, in place."""
    words = weight.detach().view(-1).view(torch.int32)
    place = _below(len(words), generator)
    words[place] ^= 1 << HIGH_BITS[_below(len(HIGH_BITS), generator)]


def _any_parameter(model: nn.Module, generator: torch.Generator) -> nn.Parameter:
    """A random one that takes part in every step: learned scales rest in a dense phase."""
    parameters = [
        parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] not in SCALE_NAMES
    ]
    return parameters[_below(len(parameters), generator)]


def _random_tokens(batch: Batch, vocab_size: int, generator: torch.Generator) -> Batch:
    num_rows, length = batch.inputs_BT.shape
    tokens = torch.randint(vocab_size, (num_rows, length + 1), generator=generator)
    tokens = tokens.to(batch.inputs_BT.device)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def _spoil_gradient(parameter: nn.Parameter) -> None:
    """Make the gradient NaN, once."""

    def spoil(gradient: Tensor) -> Tensor:
        handle.remove()
        return gradient * torch.nan

    handle = parameter.register_hook(spoil)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))
