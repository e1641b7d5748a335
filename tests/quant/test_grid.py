"""Grids and the nearest level, against a search through all levels."""

from fractions import Fraction

import pytest
import torch

from trilith.quant import GRIDS, Grid, grid_named, nearest_codes, numerators_of


def _nearest_by_search(value: float, grid: Grid) -> int:
    """Smallest distance; of two as near, the one nearer to zero; of -1 and 1, the positive."""

    def rank(code: int) -> tuple[Fraction, Fraction, Fraction]:
        level = Fraction(grid.numerators[code], grid.denominator)
        return (abs(Fraction(value) - level), abs(level), -level)

    return min(range(grid.num_levels), key=rank)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("ternary", (-1, 0, 1)),
        ("prime7", (-1 / 2, -1 / 3, -1 / 5, 0, 1 / 5, 1 / 3, 1 / 2)),
        ("prime5", (-1 / 2, -1 / 3, 0, 1 / 3, 1 / 2)),
        (
            "planes",
            (-8 / 15, -1 / 3, -1 / 5, -2 / 15, 0, 2 / 15, 1 / 5, 1 / 3, 8 / 15),
        ),
        ("uniform7", (-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1)),
        ("sign", (-1, 1)),
    ],
)
def test_levels(name: str, levels: tuple[float, ...]) -> None:
    grid = grid_named(name)
    assert grid.levels == levels
    assert grid.max_level == levels[-1]
    assert grid.num_levels == len(levels)


def test_an_unknown_grid_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"quant\.grid='binary'.*ternary.*prime7"):
        grid_named("binary")


# Levels that embeddings are stored with, beside those of projections.
ODD = Grid("odd", (-7, -5, -3, -1, 1, 3, 5, 7), 1)
ALL = {**GRIDS, "odd": ODD}


@pytest.mark.parametrize("grid", ALL.values(), ids=ALL)
def test_nearest_codes_are_those_of_a_search(grid: Grid) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2000, generator=generator) * grid.max_level
    expected = [_nearest_by_search(value, grid) for value in values.tolist()]
    assert nearest_codes(values, grid).tolist() == expected


@pytest.mark.parametrize("name", ["ternary", "sign", "odd"])
def test_ties_go_towards_zero_and_zero_counts_as_positive(name: str) -> None:
    grid = ALL[name]
    values = torch.tensor([-0.5, 0.5, 0.0, -0.0, -1.5, 1.5, 2.0, -2.0, 6.0, -6.0, 9.0, -9.0])
    expected = [_nearest_by_search(value, grid) for value in values.tolist()]
    assert nearest_codes(values, grid).tolist() == expected


@pytest.mark.parametrize("name", ["prime7", "prime5", "planes", "uniform7"])
def test_ties_between_levels_go_to_the_one_nearer_to_zero(name: str) -> None:
    grid = grid_named(name)
    positive = torch.tensor([level for level in grid.levels if level >= 0])
    middles = (positive[1:] + positive[:-1]) / 2
    zero = grid.numerators.index(0)
    steps = list(range(len(middles)))
    assert nearest_codes(middles, grid).tolist() == [zero + step for step in steps]
    assert nearest_codes(-middles, grid).tolist() == [zero - step for step in steps]


@pytest.mark.parametrize("grid", ALL.values(), ids=ALL)
def test_a_level_is_its_own_nearest(grid: Grid) -> None:
    codes = nearest_codes(torch.tensor(grid.levels).view(1, -1), grid)
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [list(range(grid.num_levels))]


@pytest.mark.parametrize("grid", ALL.values(), ids=ALL)
def test_numerators_are_those_of_the_codes(grid: Grid) -> None:
    codes = torch.arange(grid.num_levels, dtype=torch.uint8).flip(0).view(1, -1)
    numerators = numerators_of(codes, grid)
    assert numerators.dtype == torch.float32
    assert numerators.tolist() == [list(reversed(grid.numerators))]
