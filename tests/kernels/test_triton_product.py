"""The Triton kernels against the reference: on a GPU, or without one in Triton's interpreter."""

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the extra gpu is not installed")

from trilith.kernels import PackedWeight, pack_weight, packed_product
from trilith.kernels.gpu_layout import (
    DIGITS_PER_BYTE,
    GpuLayout,
    fits_gpu,
    gpu_layouts_for,
    group_bytes,
    lay_out,
    level_table,
)
from trilith.kernels.triton_product import TritonProduct
from trilith.quant import CODECS, GRIDS, Grid, QuantizedWeight, codecs_for, quantize_activation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = [(name, layout) for name, grid in GRIDS.items() for layout in gpu_layouts_for(grid)]
# Inputs, groups: less than a byte, not whole vectors, more than a block.
SHAPES = [(1, 1, 1), (7, 13, 1), (66, 330, 1), (17, 60, 3)]


def _weight(grid: Grid, shape: tuple[int, int, int], *, scale_rows: int) -> PackedWeight:
    num_out, num_in, num_groups = shape
    generator = torch.Generator().manual_seed(num_in)
    codes = torch.randint(0, grid.num_levels, (num_out, num_in), generator=generator)
    scale = torch.rand(scale_rows, num_groups, generator=generator) + 0.1
    codec = codecs_for(grid.num_levels)[0]
    return pack_weight(QuantizedWeight(codes.to(torch.uint8), scale), grid=grid, codec=codec)


def _tokens(num_tokens: int, num_in: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, num_in, generator=generator)
    # Magnitudes that differ, a token of zeros, values half way between two whole numbers.
    x *= torch.logspace(-3, 3, num_tokens)[:, None]
    x[-1] = 0
    return x


def _reference(x: Tensor, weight: PackedWeight) -> Tensor:
    values, scale = quantize_activation(x)
    return (packed_product(values.to(torch.int8), weight=weight) * scale).to(x.dtype)


def _product(weight: PackedWeight, layout: GpuLayout) -> TritonProduct:
    return TritonProduct(weight, layout=layout).to(DEVICE)


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_products_are_those_of_the_reference_to_the_last_bit(
    pair: tuple[str, GpuLayout], shape: tuple[int, int, int], num_tokens: int
) -> None:
    grid, layout = GRIDS[pair[0]], pair[1]
    weight = _weight(grid, shape, scale_rows=shape[0] if num_tokens > 1 else 1)
    x = _tokens(num_tokens, shape[1])
    y = _product(weight, layout)(x.to(DEVICE)).cpu()
    assert torch.equal(y, _reference(x, weight))


@pytest.mark.parametrize("num_tokens", [5, 17, 64, 65])
@pytest.mark.parametrize("layout", ["bits2", "base3"])
def test_batches_that_share_the_inputs_among_programs_agree(
    layout: GpuLayout, num_tokens: int
) -> None:
    weight = _weight(GRIDS["ternary"], (40, 1100, 1), scale_rows=40)
    x = _tokens(num_tokens, 1100)
    y = _product(weight, layout)(x.to(DEVICE)).cpu()
    assert torch.equal(y, _reference(x, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_tokens", [1, 6])
def test_outputs_have_the_shape_and_dtype_of_the_inputs(
    num_tokens: int, dtype: torch.dtype
) -> None:
    weight = _weight(GRIDS["ternary"], (9, 50, 1), scale_rows=9)
    x = _tokens(num_tokens, 50).to(dtype)[None].clamp(-1e4, 1e4)
    y = _product(weight, "bits2")(x.to(DEVICE)).cpu()
    assert y.shape == (1, num_tokens, 9) and y.dtype == dtype
    assert torch.equal(y, _reference(x, weight))


def test_no_tokens_make_no_outputs() -> None:
    weight = _weight(GRIDS["ternary"], (9, 50, 1), scale_rows=9)
    assert _product(weight, "bits2")(torch.empty(0, 50, device=DEVICE)).shape == (0, 9)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_activations_are_quantized_as_everywhere(num_groups: int) -> None:
    weight = _weight(GRIDS["ternary"], (3, 1500, num_groups), scale_rows=3)
    x = _tokens(40, 1500)
    # 127 / absmax is 1 here: every half is a tie.
    x[0] = torch.arange(1500) % 255 / 2
    x[0, 0] = 127
    tokens = _product(weight, "bits2").quantize(x.to(DEVICE))
    values, scale = quantize_activation(x)
    group_in = 1500 // num_groups
    assert torch.equal(tokens.scale.cpu(), scale[:, 0])
    expected = values.view(40, num_groups, group_in)
    assert torch.equal(tokens.values[..., :group_in].cpu().float(), expected)
    assert not tokens.values[..., group_in:].any()
    assert torch.equal(tokens.sums.cpu().float(), expected.sum(dim=-1))


@pytest.mark.parametrize("num_groups", [1, 7])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_laid_out_weight_is_read_back(pair: tuple[str, GpuLayout], num_groups: int) -> None:
    grid, layout = GRIDS[pair[0]], pair[1]
    weight = _weight(grid, (6, 91, num_groups), scale_rows=6)
    codes, factor = lay_out(weight, layout)
    num_bytes = group_bytes(91 // num_groups, layout)
    assert codes.shape == (6, num_groups * num_bytes) and num_bytes % 16 == 0
    found = _digits(codes.numpy(), layout).reshape(6, num_groups, -1)
    digits = found.reshape(6, num_groups, num_bytes, -1).transpose(0, 1, 3, 2)
    inputs = digits.reshape(6, num_groups, -1)[..., : 91 // num_groups].reshape(6, 91)
    expected = np.array(grid.numerators)[weight.codes().numpy()]
    if layout == "bits4":
        low, high = level_table(grid)
        table = np.frombuffer(np.array([low, high], "<u4").tobytes(), np.uint8).astype(int)
        assert np.array_equal(table[inputs] - grid.numerators[-1], expected)
    else:
        assert np.array_equal(inputs - 1, expected)
    assert torch.equal(factor, weight.scale / grid.denominator)


def _digits(codes: np.ndarray, layout: GpuLayout) -> np.ndarray:
    """The digits of every byte [...] one by one: [..., P]."""
    found, rest = [], codes.astype(int)
    for _ in range(DIGITS_PER_BYTE[layout]):
        if layout == "base3":
            found.append(rest * 3 // 256)
            rest = rest * 3 % 256
        else:
            bits = 8 // DIGITS_PER_BYTE[layout]
            found.append(rest % 2**bits)
            rest = rest // 2**bits
    return np.stack(found, axis=-1)


def test_what_the_layouts_cannot_hold_is_refused() -> None:
    weight = _weight(GRIDS["prime7"], (3, 10, 1), scale_rows=1)
    with pytest.raises(ValueError, match="bits2 does not hold grid prime7; choose one of bits4"):
        lay_out(weight, "bits2")
    nine = Grid("nine", tuple(range(-4, 5)), 4)
    codec = next(codec for codec in CODECS.values() if codec.num_codes >= 8)
    codes = QuantizedWeight(torch.zeros(2, 8, dtype=torch.uint8), torch.ones(1, 1))
    with pytest.raises(ValueError, match="too few for grid nine"):
        pack_weight(codes, grid=nine, codec=codec)
    assert gpu_layouts_for(nine) == ()
    assert fits_gpu(weight)
