"""Error compensation: each column's rounding error is made good by the columns that follow.

GPTQ (Frantar et al., arXiv 2210.17323) on any grid, with the scales given, the inputs with the
most energy first, and in float64. Axes: O outputs, I inputs.
"""

import torch
from torch import Tensor

from trilith.quant import Grid, dequantize, numerators_of, quantize
from trilith.quant.quantize import expand_scale

# Added to the second moments, as a share of their mean: fewer tokens than inputs will do then.
DAMPING = 0.01
# Columns whose errors reach the others one by one; the rest gets them all at once.
_BLOCK = 128


@torch.no_grad()
def compensate(latent: Tensor, scale: Tensor, *, moments: Tensor, grid: Grid) -> Tensor:
    """Return latent weights whose codes give outputs nearer to the given ones.

    Column by column the weight is rounded, and what the error adds to the outputs is taken from
    the columns not rounded yet, in the least-squares sense. The result holds each column as it was
    when it was rounded: its codes for `scale` are those of GPTQ.

    Args:
        latent: [O, I].
        scale: [O or 1, G], as `fit_scale` returns it.
        moments: second moments of the inputs, X^T X up to a factor, float64 [I, I].
        grid: the levels.

    Returns:
        float32 [O, I].
    """
    num_in = latent.shape[1]
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(moments[order][:, order])
    scales = expand_scale(scale, num_in).expand(-1, num_in)[:, order]
    work = latent.double()[:, order]
    rounded = torch.empty_like(work, dtype=torch.float32)
    for start in range(0, num_in, _BLOCK):
        end = min(start + _BLOCK, num_in)
        errors = torch.empty_like(work[:, start:end])
        for column in range(start, end):
            values = work[:, column : column + 1].float()
            own_scale = scales[:, column : column + 1]
            on_grid = dequantize(quantize(values, own_scale, grid), own_scale, grid)
            error = (work[:, column] - on_grid[:, 0]) / factor[column, column]
            work[:, column + 1 : end].addr_(error, factor[column, column + 1 : end], alpha=-1)
            rounded[:, column] = values[:, 0]
            errors[:, column - start] = error
        work[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return rounded[:, order.argsort()]


@torch.no_grad()
def output_scale(latent: Tensor, codes: Tensor, *, moments: Tensor, grid: Grid) -> Tensor:
    """Return the scale of each row [O, 1] that, for given codes, is nearest in the outputs.

    Least squares of X w^T = s X l^T over the inputs X: s = (l M w) / (l M l) with the levels l and
    the moments M. A row whose codes are all zero, or do not resemble it, gets 0 or less.

    Args:
        latent: the weight whose outputs are wanted, [O, I].
        codes: uint8 [O, I].
        moments: second moments of the inputs, float64 [I, I].
        grid: the levels.
    """
    levels = numerators_of(codes, grid, torch.float64) / grid.denominator
    seen = levels @ moments
    energy = (seen * levels).sum(dim=1, keepdim=True).clamp(min=1e-30)
    return ((seen * latent).sum(dim=1, keepdim=True) / energy).float()


def _inverse_factor(moments: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moments: row j tells column j's share."""
    damped = moments.clone()
    # All-zero inputs leave nothing to compensate; any positive number does then.
    damped.diagonal().add_((DAMPING * moments.diagonal().mean()).clamp(min=1e-30))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
