"""Quantize, dequantize and fake quantization, element by element."""

import pytest
import torch

from trilith.quant import (
    QuantConfig,
    dequantize,
    fake_quantize,
    fake_quantize_activation,
    grid_named,
    quantize,
    quantize_activation,
    quantize_weight,
    sqnr_db,
    straight_through,
)

GRANULARITIES = [("tensor", None), ("row", None), ("group", 4)]


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    x = torch.randn(5, requires_grad=True)
    y = straight_through(x, x.detach().round() * 3)
    weight = torch.arange(5.0)
    (y * weight).sum().backward()
    torch.testing.assert_close(y, x.round() * 3)
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("grid", ["ternary", "prime7", "planes", "sign"])
def test_codes_and_scales_element_by_element(
    grid: str, granularity: str, group_size: int | None
) -> None:
    config = QuantConfig(grid, "least_squares", granularity, group_size, 8)  # type: ignore[arg-type]
    latent = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_weight(latent, config)
    floats = dequantize(codes, scale, config.levels)
    for row in range(3):
        for column in range(8):
            scale_row = 0 if granularity == "tensor" else row
            scale_column = column // 4 if granularity == "group" else 0
            factor = float(scale[scale_row, scale_column])
            levels = [level * factor for level in config.levels.levels]
            value = float(latent[row, column])
            nearest = min(levels, key=lambda level: abs(level - value))
            assert levels[int(codes[row, column])] == pytest.approx(nearest)
            assert float(floats[row, column]) == pytest.approx(nearest)
    assert torch.equal(quantize(floats, scale, config.levels), codes)


def test_fake_quantize_lies_on_the_grid_and_keeps_dtype_and_gradient() -> None:
    config = QuantConfig("ternary", "absmean", "tensor", None, 8)
    latent = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    quantized = fake_quantize(latent, config)
    quantized.sum().backward()
    assert quantized.dtype == torch.bfloat16
    assert len(quantized.unique()) <= 3
    assert torch.equal(latent.grad, torch.ones_like(latent))


def test_activations_use_the_whole_int8_range_of_each_token() -> None:
    x = torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(0)) * 5
    values, scale = quantize_activation(x)
    assert scale.shape == (2, 3, 1)
    assert torch.equal(values, values.round())
    assert values.abs().amax(dim=-1).tolist() == [[127.0] * 3] * 2
    # Half a step, and float32 rounding.
    assert ((values * scale - x).abs() <= scale * 0.5001).all()


def test_a_token_of_zeros_stays_zero() -> None:
    values, scale = quantize_activation(torch.zeros(2, 4))
    assert not values.any()
    assert scale.isfinite().all()


def test_fake_quantized_activations_have_the_gradient_of_the_identity() -> None:
    x = torch.randn(2, 5, requires_grad=True)
    weight = torch.randn(2, 5)
    (fake_quantize_activation(x) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_sqnr_of_a_tenth_of_noise_is_20_db() -> None:
    latent = torch.ones(100)
    assert sqnr_db(latent, latent * 0.9) == pytest.approx(20, abs=1e-3)


def test_grid_of_a_config() -> None:
    config = QuantConfig("prime5", "least_squares", "row", None, None)
    assert config.levels is grid_named("prime5")
