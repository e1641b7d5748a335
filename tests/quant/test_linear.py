"""BitLinear against `F.linear` of fake-quantized operands, and exact sums against int64."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.quant import (
    BitLinear,
    Grid,
    QuantConfig,
    dequantize,
    fake_quantize,
    fake_quantize_activation,
    grid_named,
    integer_product,
    numerators_of,
    straight_through,
)

CASES = [
    QuantConfig(grid, rule, granularity, group_size, bits)  # type: ignore[arg-type]
    for (grid, rule), (granularity, group_size), bits in itertools.product(
        [("ternary", "absmean"), ("ternary", "least_squares"), ("prime7", "least_squares")],
        [("tensor", None), ("row", None), ("group", 8)],
        [8, None],
    )
]


def _name(config: QuantConfig) -> str:
    return f"{config.grid}-{config.scale_rule}-{config.granularity}-a{config.activation_bits}"


@pytest.mark.parametrize("config", CASES, ids=_name)
@pytest.mark.parametrize("shape", [(2, 3, 24), (7, 24)], ids=str)
def test_value_and_gradients_are_those_of_fake_quantization(
    config: QuantConfig, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = BitLinear(24, 11, config).eval()
    x = (torch.randn(shape) * 3).requires_grad_()
    upstream = torch.randn(*shape[:-1], 11)

    latent = layer.weight.detach().clone().requires_grad_()
    oracle_x = x.detach().clone().requires_grad_()
    acts = oracle_x if config.activation_bits is None else fake_quantize_activation(oracle_x)
    expected = F.linear(acts, fake_quantize(latent, config))
    (expected * upstream).sum().backward()

    y = layer(x)
    (y * upstream).sum().backward()
    # float32 sums of 24 products in another order; nothing is estimated.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, oracle_x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, latent.grad, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_the_dequantized_weight_not_of_its_codes() -> None:
    config = QuantConfig("ternary", "absmean", "tensor", None, None)
    layer = BitLinear(16, 4, config)
    with torch.no_grad():
        layer.weight.mul_(0.01)
    x = torch.randn(3, 16, requires_grad=True)
    layer(x).sum().backward()
    codes, scale = layer.quantized_weight()
    expected = ((codes.float() - 1) * scale).sum(dim=0).expand(3, -1)
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(dim=0).expand(4, -1))


@pytest.mark.parametrize("rule", ["absmean", "least_squares"])
def test_the_layer_computes_with_the_weights_it_reports(rule: str) -> None:
    config = QuantConfig("ternary", rule, "row", None, None)  # type: ignore[arg-type]
    layer = BitLinear(12, 5, config).eval()
    weight = dequantize(*layer.quantized_weight(), config.levels)
    x = torch.randn(4, 12)
    assert torch.equal(layer(x), x @ weight.T)


def test_a_kept_scale_follows_the_weight_in_training_and_stays_in_evaluation() -> None:
    config = QuantConfig("prime7", "least_squares", "tensor", None, 8)
    torch.manual_seed(0)
    layer = BitLinear(128, 64, config)
    fitted = layer.scale.clone()
    with torch.no_grad():
        layer.weight.mul_(1.05)
    layer.eval()(torch.randn(2, 128))
    assert torch.equal(layer.scale, fitted)
    for _ in range(30):
        layer.train()(torch.randn(2, 128))
    # Alternation stops where no code changes any more, a little before the best scale.
    torch.testing.assert_close(layer.scale, fitted * 1.05, rtol=1e-2, atol=0)
    layer.refit()
    torch.testing.assert_close(layer.scale, fitted * 1.05, rtol=1e-5, atol=0)


def _exact(values: Tensor, codes: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Sums in int64, one rounding to float32 per group, groups added in order."""
    num_groups = scale.shape[1]
    numerators = torch.tensor(grid.numerators)[codes.long()]
    size = values.shape[-1] // num_groups
    total = torch.zeros(*values.shape[:-1], codes.shape[0])
    for group in range(num_groups):
        part = slice(group * size, (group + 1) * size)
        sums = values[..., part].long() @ numerators[:, part].T
        total = total + sums.float() * (scale[:, group] / grid.denominator)
    return total


@pytest.mark.parametrize("grid", ["ternary", "prime7", "prime5", "uniform7", "sign"])
@pytest.mark.parametrize(("num_out", "num_groups"), [(1, 1), (13, 1), (13, 3)])
def test_products_are_exact_integers(grid: str, num_out: int, num_groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = grid_named(grid)
    codes = torch.randint(0, levels.num_levels, (num_out, 51), generator=generator)
    values = torch.randint(-127, 128, (2, 5, 51), generator=generator)
    scale = torch.rand(num_out, num_groups, generator=generator)
    y = integer_product(values.float(), numerators_of(codes, levels), scale, levels)
    assert torch.equal(y, _exact(values, codes, scale, levels))


def test_sums_beyond_float32_integers_stay_exact() -> None:
    grid = grid_named("prime7")
    num_in = 12_001
    generator = torch.Generator().manual_seed(0)
    # Nearly all extreme, so that sums pass 2^24 = 16,777,216; odd, so that float32 would round.
    values = torch.full((3, num_in), 127)
    values[:, :50] = torch.randint(-127, 128, (3, 50), generator=generator)
    codes = torch.full((4, num_in), 6)
    codes[:, :50] = torch.randint(0, 7, (4, 50), generator=generator)
    scale = torch.full((4, 1), 30.0)
    sums = values @ torch.tensor(grid.numerators)[codes].T
    assert int(sums.min()) > 2**24
    y = integer_product(values.float(), numerators_of(codes, grid), scale, grid)
    assert torch.equal(y, sums.float())


def test_half_precision_keeps_the_products_exact() -> None:
    config = QuantConfig("ternary", "absmean", "tensor", None, 8)
    layer = BitLinear(200, 7, config)
    x = torch.randn(3, 200)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("bits", [8, None])
def test_the_gradient_of_a_sum_over_tokens_is_the_sum_of_their_gradients(bits: int | None) -> None:
    config = QuantConfig("ternary", "absmean", "row", None, bits)  # type: ignore[arg-type]
    layer = BitLinear(10, 3, config)
    x = torch.randn(4, 10)
    layer(x).square().sum().backward()
    together = layer.weight.grad.clone()
    layer.weight.grad = None
    for token in x:
        layer(token[None]).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, together)


def test_straight_through_of_the_layer_matches_the_formula_on_latents() -> None:
    config = QuantConfig("sign", "absmean", "tensor", None, None)
    layer = BitLinear(6, 2, config)
    latent = layer.weight.detach().clone().requires_grad_()
    quantized = dequantize(*layer.quantized_weight(), config.levels)
    x = torch.randn(5, 6)
    (x @ straight_through(latent, quantized).T).pow(2).sum().backward()
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(layer.weight.grad, latent.grad)
