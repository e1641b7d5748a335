"""A snapshot: the state of a run between two optimizer steps, kept on the CPU."""

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trilith.quant import BitLinear
from trilith.training.signals import local


class Snapshot(NamedTuple):
    """Everything that a step changes, as plain objects that a checkpoint can hold.

    `recipe_step` is the position in the recipe, `step` the count of attempted steps, and
    `quantized_shares` says of each layer how near to its grid it was, and `windows` are the
    detector's: what was usual then. Of sharded tensors each process keeps its own part.
    """

    step: int
    recipe_step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Any]
    quantized_shares: list[float]
    windows: dict[str, list[float]]


def take_snapshot(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    step: int,
    recipe_step: int,
    windows: dict[str, list[float]],
) -> Snapshot:
    """Copy the state of a run to the CPU."""
    return Snapshot(
        step,
        recipe_step,
        model=_copy(model.state_dict()),
        optimizer=_copy(optimizer.state_dict()),
        rng=_rng_state(),
        quantized_shares=[layer.quantized_share for layer in _quantized_layers(model)],
        windows=windows,
    )


def restore(snapshot: Snapshot, model: nn.Module, optimizer: Optimizer) -> None:
    """Put model, optimizer and random generators back to a snapshot.

    Values are written in place, so that views, shards and captured graphs stay valid.
    """
    _write(model.state_dict(), snapshot.model)
    for layer, share in zip(_quantized_layers(model), snapshot.quantized_shares, strict=True):
        # For a validation right after: the next step takes it from the recipe.
        layer.quantized_share = share
    current = optimizer.state_dict()
    if _shape_of(current) == _shape_of(snapshot.optimizer):
        _write(current, snapshot.optimizer)
    else:
        # Before its first step an optimizer has no state.
        optimizer.load_state_dict(_copy(snapshot.optimizer))
    _set_rng_state(snapshot.rng)


def _quantized_layers(model: nn.Module) -> list[BitLinear]:
    return [layer for layer in model.modules() if isinstance(layer, BitLinear)]


def _copy(state: Any) -> Any:
    if isinstance(state, Tensor):
        return local(state.detach()).to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copy(value) for value in state)
    return state


def _shape_of(state: Any) -> Any:
    """The nesting of a state, without its values."""
    if isinstance(state, dict):
        return {key: _shape_of(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_shape_of(value) for value in state]
    return isinstance(state, Tensor)


@torch.no_grad()
def _write(current: Any, saved: Any) -> None:
    """Copy each saved tensor into its place; the rest is set anew at every step."""
    if isinstance(current, Tensor):
        local(current).copy_(saved)
    elif isinstance(current, dict):
        for key, value in current.items():
            _write(value, saved[key])
    elif isinstance(current, list | tuple):
        for value, other in zip(current, saved, strict=True):
            _write(value, other)


def _rng_state() -> dict[str, Any]:
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
