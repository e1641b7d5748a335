"""Grids: the levels that a weight may take. Levels are integers over one denominator.

Integers make the products of codes and int8 activations exact, so that every kernel can be held
to this reference bit for bit.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A symmetric set of levels `numerators[code] / denominator`, sorted upwards."""

    name: str
    numerators: tuple[int, ...]
    denominator: int

    def __post_init__(self) -> None:
        assert self.numerators == tuple(sorted(set(self.numerators))), self
        assert self.numerators == tuple(-n for n in reversed(self.numerators)), self

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The levels as floats."""
        return tuple(n / self.denominator for n in self.numerators)

    @cached_property
    def step(self) -> int | None:
        """The distance of all neighbouring numerators, if they have the same."""
        steps = {high - low for low, high in pairwise(self.numerators)}
        return steps.pop() if len(steps) == 1 else None

    @property
    def num_levels(self) -> int:
        return len(self.numerators)

    @property
    def max_level(self) -> float:
        return self.levels[-1]


TERNARY = Grid("ternary", (-1, 0, 1), 1)
# Reciprocals of the primes 2, 3, 5 (Trinity) and what is left when 1/5 is dropped.
PRIME7 = Grid("prime7", (-15, -10, -6, 0, 6, 10, 15), 30)
PRIME5 = Grid("prime5", (-3, -2, 0, 2, 3), 6)
# Two ternary planes: a / 5 + b / 3 with a and b in -1, 0, 1.
PLANES = Grid("planes", (-8, -5, -3, -2, 0, 2, 3, 5, 8), 15)
# Controls: without them the prime grid would be judged against nothing.
UNIFORM7 = Grid("uniform7", (-3, -2, -1, 0, 1, 2, 3), 3)
SIGN = Grid("sign", (-1, 1), 1)

GRIDS = {grid.name: grid for grid in (TERNARY, PRIME7, PRIME5, PLANES, UNIFORM7, SIGN)}


def grid_named(name: str) -> Grid:
    """Return the grid of that name.

    Raises:
        ValueError: no grid has that name.
    """
    if name not in GRIDS:
        raise ValueError(f"quant.grid={name!r} is not a grid; choose one of {', '.join(GRIDS)}")
    return GRIDS[name]


def nearest_codes(values: Tensor, grid: Grid) -> Tensor:
    """Return the code of the level nearest to each value.

    A value half way between two levels takes the one nearer to zero (for ternary this is
    round-half-to-even, the `round` of BitNet b1.58); without a zero level, zero counts as positive.

    Args:
        values: weights divided by their scale, any shape, floating point.
        grid: the levels.

    Returns:
        uint8 codes of the same shape.
    """
    if grid.levels == (-1.0, 0.0, 1.0):
        return (values.round().clamp_(-1, 1) + 1).to(torch.uint8)
    if grid.step == 2 and grid.denominator == 1 and 0 not in grid.numerators:
        return _nearest_odd(values, half=grid.num_levels // 2)
    positive = torch.tensor([level for level in grid.levels if level >= 0], device=values.device)
    middles = (positive[1:] + positive[:-1]) / 2
    magnitude = torch.bucketize(values.abs(), middles)
    first_positive = grid.num_levels - len(positive)
    last_negative = len(positive) - 1
    return torch.where(values < 0, last_negative - magnitude, first_positive + magnitude).to(
        torch.uint8
    )


def numerators_of(codes: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `grid.numerators[codes]`: integers held in `dtype`, same shape as `codes`."""
    if grid.step is not None:
        return codes.to(dtype, copy=True).mul_(grid.step).add_(grid.numerators[0])
    table = torch.tensor(grid.numerators, dtype=dtype, device=codes.device)
    return table[codes.long()]


def _nearest_odd(values: Tensor, *, half: int) -> Tensor:
    """Codes of the levels ..., -3, -1, 1, 3, ... of which `half` are positive."""
    magnitude = (values.abs() / 2).ceil_().clamp_(1, half)
    return torch.where(values < 0, half - magnitude, magnitude + (half - 1)).to(torch.uint8)
