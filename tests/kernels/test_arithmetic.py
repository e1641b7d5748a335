"""The arithmetic of training on every instruction set, against the reference in plain torch."""

import itertools

import pytest
import torch

from trilith.kernels import NativeArithmetic, TensorCoreArithmetic, available_isas
from trilith.kernels.choice import ISA_NUMBERS, Isa
from trilith.quant import Arithmetic, BitLinear, QuantConfig

REFERENCE = Arithmetic()
CONFIGS = [
    QuantConfig("ternary", "absmean", "tensor", None, 8),
    QuantConfig("ternary", "least_squares", "row", None, 8),
    QuantConfig("ternary", "least_squares", "group", 20, 8),
    QuantConfig("prime7", "least_squares", "group", 20, 8),
    QuantConfig("uniform7", "least_squares", "row", None, 8),
    QuantConfig("sign", "absmean", "row", None, 8),
]
FAST = [
    TensorCoreArithmetic(),
    *(NativeArithmetic(Isa(n, ISA_NUMBERS[n])) for n in available_isas()),
]


def _name(value: object) -> str:
    if isinstance(value, QuantConfig):
        return f"{value.grid}-{value.granularity}"
    isa = getattr(value, "isa", None)
    return isa.name if isa else type(value).__name__


def _layer(config: QuantConfig, num_out: int, num_in: int) -> BitLinear:
    torch.manual_seed(0)
    layer = BitLinear(num_in, num_out, config)
    with torch.no_grad():
        # Ratios of exactly one half must round as the reference does.
        layer.weight[:, :2] = layer.quantized_weight().scale[:, :1] * torch.tensor([0.5, -0.5])
    return layer


@pytest.mark.parametrize("arithmetic", FAST, ids=_name)
@pytest.mark.parametrize("config", CONFIGS, ids=_name)
@pytest.mark.parametrize("shape", [(64, 80, 19), (33, 100, 7), (16, 640, 1)], ids=str)
def test_products_have_the_bits_of_the_reference(
    arithmetic: Arithmetic, config: QuantConfig, shape: tuple[int, int, int]
) -> None:
    num_out, num_in, num_tokens = shape
    layer = _layer(config, num_out, num_in)
    latent, grid = layer.weight.detach(), config.levels
    scale = layer.quantized_weight().scale
    x = torch.randn(2, num_tokens, num_in)
    for dtype, autocast in itertools.product([torch.float32, torch.bfloat16], [False, True]):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            weight = REFERENCE.step_weight(latent, scale, grid)
            mine = arithmetic.step_weight(latent, scale, grid)
            expected = REFERENCE.multiply(x.to(dtype), weight, grid)
            product = arithmetic.multiply(x.to(dtype), weight, grid)
        for own, theirs in zip(mine, weight, strict=True):
            assert own.dtype == theirs.dtype
            assert torch.equal(own, theirs)
        assert torch.equal(product.outputs, expected.outputs)
        assert product.activations.dtype == expected.activations.dtype
        assert torch.equal(product.activations, expected.activations)


@pytest.mark.parametrize("arithmetic", FAST, ids=_name)
@pytest.mark.parametrize("config", CONFIGS[1:3], ids=_name)
def test_refined_scales_are_those_of_the_reference(
    arithmetic: Arithmetic, config: QuantConfig
) -> None:
    layer = _layer(config, 37, 100)
    latent, scale = layer.weight.detach() * 1.1, layer.quantized_weight().scale
    scale[3] = 1e9
    refined = arithmetic.refine(latent, scale, config)
    # Sums of up to 100 float32 in another order; a block without codes keeps its scale.
    torch.testing.assert_close(refined, REFERENCE.refine(latent, scale, config), rtol=2e-6, atol=0)
    assert torch.equal(refined[3], scale[3])


@pytest.mark.parametrize("arithmetic", FAST, ids=_name)
def test_a_new_weight_replaces_the_one_before(arithmetic: Arithmetic) -> None:
    grid = CONFIGS[0].levels
    x = torch.randn(3, 80)
    for seed in range(3):
        torch.manual_seed(seed)
        weight = REFERENCE.step_weight(torch.randn(32, 80), torch.ones(1, 1), grid)
        expected = REFERENCE.multiply(x, weight, grid)
        assert torch.equal(arithmetic.multiply(x, weight, grid).outputs, expected.outputs)
