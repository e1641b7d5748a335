"""Muon against a singular value decomposition, and both parts behind one state."""

import io
import math

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from trilith.training.muon import Muon, MuonWithAdamW, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_directions_stay_and_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    inner = u.T @ orthogonalize(matrix).double() @ v.T
    off_diagonal = inner - torch.diag(inner.diagonal())
    assert off_diagonal.abs().max() < 1e-5
    assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3


def test_the_update_has_the_size_of_adamw_and_decay_shrinks() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(16, 64))
    before = matrix.detach().clone()
    muon = Muon([matrix], lr=0.1, momentum=0.95)
    muon.param_groups[0]["weight_decay"] = 0.5
    matrix.grad = torch.randn(16, 64)
    muon.step()
    update = (before * (1 - 0.1 * 0.5) - matrix.detach()) / 0.1
    # 16 singular values near one: rms = 0.2 sqrt(64) sqrt(16 / (16 * 64)) = 0.2.
    assert math.isclose(float(update.square().mean().sqrt()), 0.2, rel_tol=0.15)
    assert float((update * orthogonalize(matrix.grad)).sum()) > 0


def both() -> tuple[nn.Linear, MuonWithAdamW]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    muon = Muon([layer.weight], lr=0.05, momentum=0.9)
    return layer, MuonWithAdamW(muon, AdamW([layer.bias], lr=0.05))


def train(layer: nn.Linear, optimizer: MuonWithAdamW, *, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (layer(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def test_a_restored_state_goes_on_with_the_same_bits() -> None:
    layer, optimizer = both()
    train(layer, optimizer, seeds=range(5))
    weights = {k: v.clone() for k, v in layer.state_dict().items()}
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    train(layer, optimizer, seeds=range(5, 9))
    again, restored = both()
    again.load_state_dict(weights)
    restored.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=False))
    train(again, restored, seeds=range(5, 9))
    assert torch.equal(layer.weight, again.weight)
    assert torch.equal(layer.bias, again.bias)


def test_rates_set_on_the_groups_reach_both_parts() -> None:
    layer, optimizer = both()
    optimizer.load_state_dict(optimizer.state_dict())
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    train(layer, optimizer, seeds=range(2))
    assert torch.equal(layer.weight, before["weight"])
    assert torch.equal(layer.bias, before["bias"])
