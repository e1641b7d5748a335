"""Rotary positions (Su et al., arXiv 2104.09864), halves convention.

Axes as in `attention`: B batch, H heads, T tokens, C head width.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rope_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions.

    Args:
        positions: [..., T]; those far beyond any context as float64, since a float32 angle is off
            by 2^-24 of itself.
        head_width: C, even.
        theta: base of the angles.

    Returns:
        Two float32 tensors [..., T, C].
    """
    if positions.dtype != torch.float64:
        positions = positions.float()
    exponents = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions[..., None] * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        return _turn(x_BHTC, cos_TC, sin_TC)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos_TC, sin_TC = ctx.saved_tensors  # type: ignore[attr-defined]
        return _turn(grad, cos_TC, -sin_TC), None, None


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) of features by its position's angle; the gradient turns back.

    Tables are [T, C], or [B, 1, T, C] where rows have positions of their own.
    """
    return _Rotate.apply(x_BHTC, cos_TC, sin_TC)


def _turn(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    half = x_BHTC.shape[-1] // 2
    out = x_BHTC * cos_TC
    out[..., :half].addcmul_(x_BHTC[..., half:], sin_TC[..., :half], value=-1)
    out[..., half:].addcmul_(x_BHTC[..., :half], sin_TC[..., half:])
    return out.to(x_BHTC.dtype)
