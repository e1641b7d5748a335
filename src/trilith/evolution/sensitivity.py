"""Sensitivity: what moving one layer to a grid costs, and which layers may move together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trilith.evolution.distill import forward_kl
from trilith.model import Transformer
from trilith.quant import BitLinear

# Windows that pass through a model at once.
_BATCH_SIZE = 4


@torch.no_grad()
def layer_costs(
    teacher: Transformer, before: Transformer, after: Transformer, *, windows_NT: Tensor
) -> dict[str, float]:
    """Return for each layer the KL divergence, in nats, that its move alone adds.

    The divergence is that of the teacher's predictions from the model's, averaged over the tokens
    of the windows; what the model before the move has of it is taken off.

    Args:
        teacher: the dense model.
        before: the model whose layers move, dense or on a grid; as it was when all is done.
        after: the same model, all of it on the new grid.
        windows_NT: token ids [N, T].
    """
    targets = [teacher(batch) for batch in windows_NT.split(_BATCH_SIZE)]
    at_rest = _divergence(before, targets, windows_NT)
    moved = {name: m for name, m in after.named_modules() if isinstance(m, BitLinear)}
    costs = {}
    for name, layer in moved.items():
        with _replaced(before, name, layer):
            costs[name] = _divergence(before, targets, windows_NT) - at_rest
    return costs


def groups_within(costs: dict[str, float], *, budget: float) -> list[list[str]]:
    """Group layers, the cheapest first, so that the costs of a group add up to at most the budget.

    A layer that costs more on its own is a group of its own.
    """
    groups: list[list[str]] = []
    spent = budget
    for name in sorted(costs, key=lambda name: costs[name]):
        cost = max(0.0, costs[name])
        if not groups or spent + cost > budget:
            groups.append([])
            spent = 0.0
        groups[-1].append(name)
        spent += cost
    return groups


def _divergence(model: Transformer, targets: list[Tensor], windows_NT: Tensor) -> float:
    was_training = model.training
    model.eval()
    batches = windows_NT.split(_BATCH_SIZE)
    parts = [
        float(forward_kl(model(batch), target)) * len(batch)
        for batch, target in zip(batches, targets, strict=True)
    ]
    model.train(was_training)
    return sum(parts) / len(windows_NT)


@contextmanager
def _replaced(model: Transformer, name: str, layer: BitLinear) -> Iterator[None]:
    original = model.get_submodule(name)
    was_training = layer.training
    model.set_submodule(name, layer.eval())
    try:
        yield
    finally:
        model.set_submodule(name, original)
        layer.train(was_training)
