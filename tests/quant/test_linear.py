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
    dequantized_weight,
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
        [
            *(("ternary", rule) for rule in ("absmean", "median", "least_squares", "learned")),
            ("prime7", "least_squares"),
            ("prime7", "learned"),
        ],
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
    # The logarithm of a learned scale and back moves its last bit.
    quantized = fake_quantize(latent, config)
    if config.scale_rule == "learned":
        quantized = straight_through(latent, dequantized_weight(layer))
    expected = F.linear(acts, quantized)
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
    layer.train()
    for step in range(30):
        layer.start_step(hold=step % 2 == 0)
        for _ in range(2):
            layer(torch.randn(2, 128))
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


@pytest.mark.parametrize("grid", ["ternary", "prime7", "prime5", "planes", "uniform7", "sign"])
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
    assert torch.equal(y, layer(x).bfloat16())


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


def test_all_micro_batches_of_a_step_see_the_same_codes() -> None:
    config = QuantConfig("ternary", "least_squares", "row", None, 8)
    layers = [BitLinear(24, 6, config).train() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, hold in zip(layers, (True, False), strict=True):
        with torch.no_grad():
            layer.weight.mul_(torch.linspace(0.5, 1.5, 24))
        layer.start_step(hold=hold)
    x = torch.randn(3, 24)
    outputs = [layer(x) for layer in layers for _ in range(2)]
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert torch.equal(layers[0].scale, layers[1].scale)


def test_a_weight_loaded_after_a_step_is_quantized_anew() -> None:
    layer = BitLinear(8, 3, QuantConfig("ternary", "absmean", "row", None, 8)).train()
    layer.start_step(hold=True)
    with torch.no_grad():
        layer.weight.neg_()
    x = torch.randn(2, 8)
    assert not torch.equal(layer(x), layer.eval()(x))
    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("bits", [8, None])
def test_a_share_blends_weights_and_activations(bits: int | None) -> None:
    config = QuantConfig("ternary", "absmean", "row", None, bits)  # type: ignore[arg-type]
    layer = BitLinear(16, 5, config)
    x = torch.randn(4, 16)
    layer.quantized_share = 0.0
    assert torch.equal(layer(x), F.linear(x, layer.weight))
    layer.quantized_share = 0.25
    weight = 0.75 * layer.weight + 0.25 * fake_quantize(layer.weight, config)
    acts = x if bits is None else 0.75 * x + 0.25 * fake_quantize_activation(x)
    torch.testing.assert_close(layer(x), F.linear(acts, weight))
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, acts.detach().sum(dim=0).expand(5, -1))


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("grid", ["ternary", "prime7"])
def test_a_learned_scale_gets_the_gradient_of_lsq(granularity: str, grid: str) -> None:
    group_size = 4 if granularity == "group" else None
    config = QuantConfig(grid, "learned", granularity, group_size, None)  # type: ignore[arg-type]
    torch.manual_seed(0)
    layer = BitLinear(8, 3, config).double()
    x, upstream = torch.randn(5, 8).double(), torch.randn(5, 3).double()
    (layer(x) * upstream).sum().backward()
    grad_weight = upstream.T @ x
    levels = layer.config.levels
    codes, scale = layer.quantized_weight()
    expected = torch.zeros_like(scale)
    num_groups = scale.shape[1]
    for o, i in itertools.product(range(3), range(8)):
        block = (min(o, scale.shape[0] - 1), i * num_groups // 8)
        ratio = float(layer.weight[o, i] / scale[block])
        slope = levels.levels[codes[o, i]] - (ratio if abs(ratio) <= levels.max_level else 0)
        expected[block] += grad_weight[o, i] * slope * scale[block]
    expected /= (24 / expected.numel() * levels.numerators[-1]) ** 0.5
    # quantize works in float32.
    torch.testing.assert_close(layer.log_scale.grad, expected.double(), rtol=1e-5, atol=1e-6)
    assert float(expected.abs().min()) > 0
