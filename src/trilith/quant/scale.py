"""Scales: the factor of a tensor, a row or a group of inputs, and the rules that fit it."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trilith.quant.grid import Grid, nearest_codes, numerators_of

Granularity = Literal["tensor", "row", "group"]

# Smallest scale: a row of zeros keeps a finite inverse.
MIN_SCALE = 1e-8
# Starting points of the alternating fit, as multiples of root mean square / largest level.
_START_MULTIPLES = (0.8, 1.2, 1.6, 2.0, 2.5)
# Alternations of codes and scale from each of them.
_NUM_ALTERNATIONS = 8
# Values that are fitted together: what the alternations pass over stays in the cache.
_VALUES_AT_ONCE = 2**17


def grouped(latent: Tensor, granularity: Granularity, group_size: int | None) -> Tensor:
    """View a weight by the blocks that share a scale.

    Args:
        latent: [O, I].
        granularity: what shares a scale: the tensor, a row, or `group_size` inputs of a row.
        group_size: inputs per group; only for granularity "group".

    Returns:
        A view: [1, 1, O*I], [O, 1, I] or [O, I / group_size, group_size].

    Raises:
        ValueError: the inputs are no multiple of `group_size`.
    """
    num_out, num_in = latent.shape
    if granularity == "tensor":
        return latent.reshape(1, 1, -1)
    if granularity == "row":
        return latent.reshape(num_out, 1, num_in)
    if not group_size or num_in % group_size:
        raise ValueError(
            f"quant.group_size={group_size} does not divide the {num_in} inputs of a "
            f"{num_out}x{num_in} weight; choose a divisor or quant.granularity=row"
        )
    return latent.reshape(num_out, -1, group_size)


def absmean_scale(blocks: Tensor) -> Tensor:
    """Mean absolute value of each block (BitNet b1.58, arXiv 2402.17764, eq. 3).

    Args:
        blocks: [..., N] as `grouped` returns them.

    Returns:
        float32 [...], at least MIN_SCALE.
    """
    return blocks.float().abs().mean(dim=-1).clamp_(min=MIN_SCALE)


def median_scale(blocks: Tensor) -> Tensor:
    """Median absolute value of each block (b1.58 Reloaded, arXiv 2407.09527).

    Args:
        blocks: [..., N] as `grouped` returns them.

    Returns:
        float32 [...], at least MIN_SCALE; of an even number the lower of the two in the middle.
    """
    return blocks.float().abs().median(dim=-1).values.clamp_(min=MIN_SCALE)


def refine_scale(
    blocks: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None = None
) -> Tensor:
    """One alternation of the least-squares fit: codes for this scale, then the best scale for them.

    Never increases the squared error. A block whose codes are all zero keeps its scale.

    Args:
        blocks: [..., N].
        scale: [...] float32.
        grid: the levels.
        importance: weights of the squared errors [..., N], not negative; None counts all alike.

    Returns:
        float32 [...].
    """
    values = blocks.float()
    levels = numerators_of(nearest_codes(values / scale[..., None], grid), grid)
    weighted = levels if importance is None else levels * importance
    energy = (weighted * levels).sum(dim=-1)
    fitted = (values * weighted).sum(dim=-1) / energy * grid.denominator
    return torch.where(energy > 0, fitted, scale).clamp_(min=MIN_SCALE)


def least_squares_scale(blocks: Tensor, grid: Grid) -> Tensor:
    """Scale with the smallest squared error found from several starting points.

    Args:
        blocks: [..., N].
        grid: the levels.

    Returns:
        float32 [...].
    """
    if blocks.dim() > 1 and len(blocks) > 1 and blocks.numel() > _VALUES_AT_ONCE:
        step = max(1, _VALUES_AT_ONCE * len(blocks) // blocks.numel())
        return torch.cat([least_squares_scale(part, grid) for part in blocks.split(step)])
    values = blocks.float()
    rms = values.square().mean(dim=-1).sqrt().clamp_(min=MIN_SCALE)
    starts = [rms * (multiple / grid.max_level) for multiple in _START_MULTIPLES]
    nothing = _Candidate(rms.clone(), torch.full_like(rms, torch.inf))
    return _best_of(nothing, starts, values, grid).scale


def weighted_scale(blocks: Tensor, importance: Tensor, grid: Grid) -> Tensor:
    """Scale with the smallest weighted squared error found; never a larger one than the plain fit.

    Args:
        blocks: [..., N].
        importance: weights of the squared errors [..., N], not negative.
        grid: the levels.

    Returns:
        float32 [...].
    """
    values = blocks.float()
    plain = least_squares_scale(values, grid)
    total = importance.sum(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    rms = ((importance * values.square()).sum(dim=-1) / total).sqrt().clamp_(min=MIN_SCALE)
    starts = [plain, *(rms * (multiple / grid.max_level) for multiple in _START_MULTIPLES)]
    best = _Candidate(plain, squared_error(values, plain, grid, importance))
    return _best_of(best, starts, values, grid, importance).scale


def squared_error(
    blocks: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None = None
) -> Tensor:
    """Sum of squared differences between blocks and quantized blocks: [..., N] -> [...].

    `importance` [..., N] weighs the squares; None counts all alike.
    """
    levels = numerators_of(nearest_codes(blocks / scale[..., None], grid), grid)
    squares = (blocks - levels * (scale[..., None] / grid.denominator)).square()
    return (squares if importance is None else squares * importance).sum(dim=-1)


class _Candidate(NamedTuple):
    """Scales and their squared errors, both [...]."""

    scale: Tensor
    error: Tensor


def _best_of(
    best: _Candidate,
    starts: list[Tensor],
    values: Tensor,
    grid: Grid,
    importance: Tensor | None = None,
) -> _Candidate:
    """Alternate codes and scale from each start; keep what has the smallest error in a block."""
    for scale in starts:
        for _ in range(_NUM_ALTERNATIONS):
            scale = refine_scale(values, scale, grid, importance)
        error = squared_error(values, scale, grid, importance)
        is_better = error < best.error
        best = _Candidate(
            torch.where(is_better, scale, best.scale), torch.minimum(error, best.error)
        )
    return best
