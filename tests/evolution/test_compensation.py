"""Compensation against the plainest true form of the same mathematics: an inverse per column."""

import pytest
import torch
from torch import Tensor

from trilith.evolution.compensation import DAMPING, compensate, output_scale
from trilith.quant import (
    QuantConfig,
    dequantize,
    fit_scale,
    fit_weighted_scale,
    grid_named,
    quantize,
)

GRIDS = ["ternary", "prime7", "sign"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(num_tokens: int, num_in: int) -> Tensor:
    """Inputs of few causes, of which some matter far more, and a little noise of their own."""
    causes = draw(num_tokens, num_in // 4, seed=1)
    mixed = causes @ draw(num_in // 4, num_in, seed=2)
    strength = draw(num_in, seed=3).exp()
    return mixed * strength + 0.3 * draw(num_tokens, num_in, seed=4)


def fitted(grid: str, latent: Tensor, *, group_size: int | None = None) -> Tensor:
    granularity = "row" if group_size is None else "group"
    config = QuantConfig(grid, "least_squares", granularity, group_size, 8)  # type: ignore[arg-type]
    return fit_scale(latent, config)


def by_inverses(latent: Tensor, scale: Tensor, moments: Tensor, grid: str) -> Tensor:
    """Optimal brain surgeon, a column at a time: invert what is left of the matrix each time."""
    num_in = latent.shape[1]
    work, rounded = latent.double().clone(), torch.empty(latent.shape)
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(num_in, dtype=torch.float64)
    left = sorted(range(num_in), key=lambda column: -float(moments[column, column]))
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        column = left[0]
        own = scale[:, column * scale.shape[1] // num_in, None]
        rounded[:, column] = work[:, column].float()
        values = rounded[:, column, None]
        level = dequantize(quantize(values, own, grid_named(grid)), own, grid_named(grid))
        error = work[:, column] - level[:, 0]
        work[:, left] -= error[:, None] * (inverse[0] / inverse[0, 0])
        left.pop(0)
    return rounded


@pytest.mark.parametrize("group_size", [None, 7])
@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_the_update_of_the_optimal_brain_surgeon(grid: str, group_size: int | None) -> None:
    latent, inputs = draw(5, 21, seed=5), correlated_inputs(60, 21).double()
    moments = inputs.T @ inputs / len(inputs)
    scale = fitted(grid, latent, group_size=group_size)
    result = compensate(latent, scale, moments=moments, grid=grid_named(grid))
    expected = by_inverses(latent, scale, moments, grid)
    # Both in float64; only their roundings differ.
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_columns_change_nothing() -> None:
    latent, inputs = draw(3, 150, seed=6), correlated_inputs(400, 150).double()
    moments = inputs.T @ inputs / len(inputs)
    scale = fitted("ternary", latent)
    result = compensate(latent, scale, moments=moments, grid=grid_named("ternary"))
    expected = by_inverses(latent, scale, moments, "ternary")
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_its_outputs_are_nearer_than_those_of_plain_rounding(grid: str) -> None:
    latent, inputs = draw(64, 96, seed=7), correlated_inputs(500, 96).double()
    config = QuantConfig(grid, "least_squares", "row", None, 8)
    moments = inputs.T @ inputs / len(inputs)
    levels = grid_named(grid)

    def lost(weight: Tensor, scale: Tensor) -> float:
        on_grid = dequantize(quantize(weight, scale, levels), scale, levels).double()
        return float((inputs @ (latent.double() - on_grid).T).square().sum())

    plain_scale = fit_scale(latent, config)
    plain = lost(latent, plain_scale)
    same_scale = lost(compensate(latent, plain_scale, moments=moments, grid=levels), plain_scale)
    scale = fit_weighted_scale(latent, moments.diagonal(), config)
    whole = lost(compensate(latent, scale, moments=moments, grid=levels), scale)
    assert same_scale < 0.5 * plain
    assert whole < 0.5 * plain


@pytest.mark.parametrize("grid", GRIDS)
def test_inputs_without_correlation_leave_rounding_to_nearest(grid: str) -> None:
    latent = draw(9, 140, seed=8)
    scale = fitted(grid, latent)
    for moments in (torch.eye(140), torch.zeros(140, 140), torch.diag(draw(140).square())):
        result = compensate(latent, scale, moments=moments.double(), grid=grid_named(grid))
        assert torch.equal(result, latent)


def test_fewer_tokens_than_inputs_and_dead_inputs_still_give_finite_weights() -> None:
    inputs = correlated_inputs(4, 32).double()
    inputs[:, 5:9] = 0
    latent = draw(6, 32, seed=9)
    scale = fitted("ternary", latent)
    result = compensate(latent, scale, moments=inputs.T @ inputs, grid=grid_named("ternary"))
    assert result.isfinite().all()
    assert torch.equal(result[:, 5:9], latent[:, 5:9])


@pytest.mark.parametrize("grid", GRIDS)
def test_no_other_scale_gives_nearer_outputs(grid: str) -> None:
    latent, inputs = draw(7, 20, seed=10), correlated_inputs(80, 20).double()
    levels = grid_named(grid)
    codes = quantize(latent, fitted(grid, latent), levels)
    scale = output_scale(latent, codes, moments=inputs.T @ inputs, grid=levels)
    # By the method of lstsq: one unknown a row.
    on_grid = dequantize(codes, torch.ones(7, 1), levels).double()
    for row in range(7):
        outputs = inputs @ latent[row].double()
        expected = torch.linalg.lstsq((inputs @ on_grid[row])[:, None], outputs[:, None]).solution
        assert float(scale[row]) == pytest.approx(float(expected), rel=1e-5)


def test_codes_of_zeros_have_no_scale() -> None:
    moments = torch.eye(4, dtype=torch.float64)
    codes = torch.ones(2, 4, dtype=torch.uint8)
    scale = output_scale(draw(2, 4), codes, moments=moments, grid=grid_named("ternary"))
    assert not scale.any()
