"""Scales and the noise they leave on a Gaussian, against figures worked out independently."""

import math

import pytest
import torch
from torch import Tensor

from trilith.quant import (
    QuantConfig,
    absmean_scale,
    dequantize,
    grid_named,
    least_squares_scale,
    quantize_weight,
    refine_scale,
    sqnr_db,
    weighted_scale,
)
from trilith.quant.scale import MIN_SCALE, grouped, squared_error


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sqnr_on_a_gaussian(grid: str, rule: str) -> float:
    latent = _gaussian(1000, 1000) * 0.02
    config = QuantConfig(grid, rule, "tensor", None, 8)  # type: ignore[arg-type]
    codes, scale = quantize_weight(latent, config)
    return sqnr_db(latent, dequantize(codes, scale, config.levels))


# 0.15 dB: the figures are given to one decimal, and a million draws move them by 0.01 dB.
@pytest.mark.parametrize(
    ("grid", "rule", "expected_db"),
    [
        ("ternary", "least_squares", 7.2),
        ("ternary", "absmean", 5.8),
        ("prime7", "least_squares", 12.8),
        ("uniform7", "least_squares", 13.3),
        ("planes", "least_squares", 15.0),
        # Lloyd-Max of two levels: 1 / (1 - 2 / pi).
        ("sign", "least_squares", 10 * math.log10(1 / (1 - 2 / math.pi))),
    ],
)
def test_noise_on_a_gaussian(grid: str, rule: str, expected_db: float) -> None:
    assert _sqnr_on_a_gaussian(grid, rule) == pytest.approx(expected_db, abs=0.15)


def test_prime7_fits_a_gaussian_with_3_74_sigma() -> None:
    scale = least_squares_scale(_gaussian(1, 1, 1_000_000), grid_named("prime7"))
    # The error is flat around its minimum: 1% in the scale costs less than 0.01 dB.
    assert float(scale) == pytest.approx(3.74, rel=0.01)


def test_absmean_leaves_31_percent_zeros_on_a_gaussian() -> None:
    config = QuantConfig("ternary", "absmean", "tensor", None, 8)
    codes, _ = quantize_weight(_gaussian(1000, 1000), config)
    # P(|x| < sqrt(2 / pi) / 2) for a normal x.
    expected = math.erf(math.sqrt(2 / math.pi) / 2 / math.sqrt(2))
    assert expected == pytest.approx(0.31, abs=0.005)
    assert float((codes == 1).float().mean()) == pytest.approx(expected, abs=0.002)


def test_absmean_is_the_mean_magnitude_in_float32() -> None:
    latent = _gaussian(3, 8, seed=2)
    expected = sum(abs(value) for value in latent.flatten().tolist()) / 24
    assert float(absmean_scale(latent.view(1, 1, -1))) == pytest.approx(expected, rel=1e-6)
    assert absmean_scale(latent.bfloat16()).dtype == torch.float32


def test_blocks_of_each_granularity() -> None:
    latent = torch.arange(24.0).view(3, 8)
    assert grouped(latent, "tensor", None).tolist() == [[latent.flatten().tolist()]]
    assert grouped(latent, "row", None).tolist() == [[row] for row in latent.tolist()]
    halves = [[row[:4], row[4:]] for row in latent.tolist()]
    assert grouped(latent, "group", 4).tolist() == halves


@pytest.mark.parametrize("group_size", [3, 16, None])
def test_a_group_size_that_does_not_divide_is_refused(group_size: int | None) -> None:
    with pytest.raises(ValueError, match=r"group_size=.* does not divide the 8 inputs"):
        grouped(torch.zeros(3, 8), "group", group_size)


def _best_ternary_error(values: list[float]) -> float:
    """Exact optimum: the k largest magnitudes share a level, their mean; try every k."""
    magnitudes = sorted((abs(value) for value in values), reverse=True)
    total = sum(value * value for value in values)
    sums = 0.0
    best = total
    for k, magnitude in enumerate(magnitudes, start=1):
        sums += magnitude
        best = min(best, total - sums * sums / k)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_ternary_least_squares_is_near_the_exact_optimum(seed: int) -> None:
    values = _gaussian(64, seed=seed)
    grid = grid_named("ternary")
    scale = least_squares_scale(values, grid)
    best = _best_ternary_error(values.double().tolist())
    error = float(squared_error(values, scale, grid))
    # Alternation may stop in a neighbouring local optimum: at most 1% off, never better.
    assert best * (1 - 1e-5) <= error <= best * 1.01


@pytest.mark.parametrize("grid", ["ternary", "prime7", "prime5", "planes", "uniform7", "sign"])
def test_a_refinement_never_increases_the_error(grid: str) -> None:
    blocks = _gaussian(50, 33, seed=4)
    scale = torch.full((50,), 0.3)
    for _ in range(6):
        refined = refine_scale(blocks, scale, grid_named(grid))
        before = squared_error(blocks, scale, grid_named(grid))
        after = squared_error(blocks, refined, grid_named(grid))
        assert (after <= before * (1 + 1e-5)).all()
        scale = refined


def test_without_a_scale_a_weight_takes_the_nearest_of_the_levels_themselves() -> None:
    latent = _gaussian(30, 20, seed=8) * 0.3
    config = QuantConfig("prime7", "unit", "tensor", None, 8)
    codes, scale = quantize_weight(latent, config)
    levels = torch.tensor([0, 1 / 5, 1 / 3, 1 / 2, -1 / 5, -1 / 3, -1 / 2])
    nearest = levels[(latent[..., None] - levels).abs().argmin(dim=-1)]
    torch.testing.assert_close(dequantize(codes, scale, config.levels), nearest)


def _weighted_error(values: Tensor, scale: Tensor, grid: str, importance: Tensor) -> Tensor:
    """By its definition, in float64: every value takes the nearest of all levels."""
    levels = torch.tensor(grid_named(grid).levels, dtype=torch.float64) * scale.double()[:, None]
    distances = (values.double()[:, :, None] - levels[:, None, :]).abs().amin(dim=-1)
    return (importance.double() * distances.square()).sum(dim=-1)


@pytest.mark.parametrize("grid", ["ternary", "prime7", "prime5", "planes", "uniform7", "sign"])
def test_a_weighted_fit_never_has_a_larger_weighted_error_than_the_plain_one(grid: str) -> None:
    values = _gaussian(200, 40, seed=5)
    importance = _gaussian(200, 40, seed=6).abs() ** 3
    importance[:20, 7:] = 0
    importance[0] = 0
    plain = least_squares_scale(values, grid_named(grid))
    weighted = weighted_scale(values, importance, grid_named(grid))
    before = _weighted_error(values, plain, grid, importance)
    after = _weighted_error(values, weighted, grid, importance)
    # Both errors are compared in float32 where the scale is chosen.
    assert (after <= before * (1 + 1e-5) + 1e-12).all()
    assert after.sum() < 0.97 * before.sum()


def test_equal_weights_give_the_plain_error() -> None:
    values, grid = _gaussian(50, 40, seed=7), grid_named("ternary")
    ones = torch.full_like(values, 2.5)
    plain = squared_error(values, least_squares_scale(values, grid), grid)
    torch.testing.assert_close(
        squared_error(values, weighted_scale(values, ones, grid), grid), plain, rtol=1e-2, atol=0
    )


def test_a_weight_on_the_grid_is_found_again() -> None:
    grid = grid_named("prime7")
    codes = torch.randint(0, 7, (5, 40), generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0])
    latent = torch.tensor(grid.levels)[codes] * scale[:, None]
    config = QuantConfig("prime7", "least_squares", "row", None, 8)
    found = quantize_weight(latent, config)
    assert torch.equal(found.codes.long(), codes)
    torch.testing.assert_close(found.scale, scale[:, None], rtol=1e-5, atol=0)


@pytest.mark.parametrize("rule", ["absmean", "least_squares"])
def test_a_row_of_zeros_keeps_a_finite_scale(rule: str) -> None:
    latent = _gaussian(3, 8)
    latent[1] = 0
    config = QuantConfig("ternary", rule, "row", None, 8)  # type: ignore[arg-type]
    codes, scale = quantize_weight(latent, config)
    assert float(scale[1]) == pytest.approx(MIN_SCALE)
    assert codes[1].tolist() == [1] * 8
    assert scale.isfinite().all()
