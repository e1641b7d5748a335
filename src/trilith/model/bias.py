"""The bias of a projection, beside it: grids hold weights alone."""

import torch
from torch import Tensor, nn


class Bias(nn.Module):
    """x + weight over the last axis, in the precision of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Shift [..., O] -> [..., O]."""
        return x + self.weight.to(x.dtype)
