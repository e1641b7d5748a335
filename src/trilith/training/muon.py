"""Muon for matrices, AdamW for the rest, as one optimizer.

torch.optim.Muon iterates in bfloat16, which takes a second a step for a million weights on a CPU
without bfloat16 units (LOG.md, 2026-11-21); here a CPU iterates in float32.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trilith.training.sharding import gathered, share_like

# Coefficients of the quintic iteration (Jordan et al., Muon, 2024): steepest at zero.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_EPS = 1e-7
# Root mean square of an AdamW update, which Muon's is scaled to (Moonlight, arXiv 2502.16982).
_UPDATE_RMS = 0.2


class Muon(Optimizer):
    """Orthogonalized Nesterov momentum with decoupled weight decay, for 2-D parameters."""

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalize(gathered(matrix.grad.lerp(momentum, group["momentum"])))
                scale = _UPDATE_RMS * math.sqrt(max(matrix.shape))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(share_like(update, matrix), alpha=-group["lr"] * scale)


class MuonWithAdamW(Optimizer):
    """Both optimizers behind one interface; its parameter groups and state are theirs.

    So its state dict is that of one optimizer, which torch knows how to shard.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Compute the gradients by `closure`, if given, then update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values near one by Newton-Schulz iterations.

    Args:
        matrix: [R, C].

    Returns:
        [R, C]: close to U V^T of the singular value decomposition; values within 0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / (x.norm() + _EPS)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
