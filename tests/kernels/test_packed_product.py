"""Packed products: the reference against numpy integers, every kernel against the reference."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from trilith.kernels import PackedLinear, PackedWeight, TorchProduct, pack_weight, packed_product
from trilith.quant import CODECS, GRIDS, BitLinear, QuantConfig, QuantizedWeight, codecs_for

PAIRS = [(g.name, c.name) for g in GRIDS.values() for c in codecs_for(g.num_levels)]
# (inputs, groups): odd sizes, rows that end inside a byte.
SHAPES = [(1, 1, 1), (1, 5, 1), (7, 13, 1), (3, 51, 3), (16, 64, 4), (33, 121, 11)]


def _weight(pair: tuple[str, str], shape: tuple[int, int, int], scale_rows: str) -> PackedWeight:
    grid, codec = GRIDS[pair[0]], CODECS[pair[1]]
    num_out, num_in, num_groups = shape
    generator = torch.Generator().manual_seed(num_in)
    codes = torch.randint(0, grid.num_levels, (num_out, num_in), generator=generator)
    rows = num_out if scale_rows == "per row" else 1
    scale = torch.rand(rows, num_groups, generator=generator) + 0.1
    return pack_weight(QuantizedWeight(codes.to(torch.uint8), scale), grid=grid, codec=codec)


def _values(num_in: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(-127, 128, (2, 3, num_in), generator=generator, dtype=torch.int8)


def _product_by_numpy(values: Tensor, weight: PackedWeight) -> np.ndarray:
    levels = np.array(weight.grid.numerators)[weight.codes().numpy()]
    total = np.zeros((), dtype=np.float32)
    size = weight.shape[1] // weight.scale.shape[1]
    for group in range(weight.scale.shape[1]):
        part = slice(group * size, (group + 1) * size)
        sums = np.einsum("bti,oi->bto", values.numpy()[..., part].astype(np.int64), levels[:, part])
        factor = weight.scale[:, group].numpy() / np.float32(weight.grid.denominator)
        total = total + sums.astype(np.float32) * factor
    return total


@pytest.mark.parametrize("scale_rows", ["per row", "shared"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_reference_and_kernels_agree_to_the_last_bit(
    pair: tuple[str, str], shape: tuple[int, int, int], scale_rows: str
) -> None:
    weight, values = _weight(pair, shape, scale_rows), _values(shape[1])
    reference = packed_product(values, weight=weight)
    assert reference.dtype == torch.float32
    assert np.array_equal(reference.numpy(), _product_by_numpy(values, weight))
    assert torch.equal(TorchProduct(weight)(values), reference)


def test_sums_beyond_float32_integers_agree() -> None:
    grid, codec = GRIDS["prime7"], CODECS["bits3"]
    codes = torch.full((2, 9001), 6, dtype=torch.uint8)
    codes[:, 0] = torch.tensor([2, 4], dtype=torch.uint8)
    weight = pack_weight(QuantizedWeight(codes, torch.ones(2, 1)), grid=grid, codec=codec)
    values = torch.full((3, 9001), 127, dtype=torch.int8)
    assert torch.equal(TorchProduct(weight)(values), packed_product(values, weight=weight))


@pytest.mark.parametrize(
    ("rule", "granularity", "group_size", "bits"),
    [
        (*rule, bits)
        for rule, bits in itertools.product(
            [
                ("absmean", "tensor", None),
                ("absmean", "row", None),
                ("least_squares", "group", 8),
            ],
            [8, None],
        )
    ],
)
@pytest.mark.parametrize("codec", ["base3", "bits2", "bits3"])
def test_a_packed_linear_is_the_bitlinear_it_was_packed_from(
    codec: str, rule: str, granularity: str, group_size: int | None, bits: int | None
) -> None:
    config = QuantConfig("ternary", rule, granularity, group_size, bits)  # type: ignore[arg-type]
    layer = BitLinear(24, 11, config).eval()
    weight = pack_weight(layer.quantized_weight(), grid=config.levels, codec=CODECS[codec])
    packed = PackedLinear(weight, activation_bits=bits)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 24)
    y = packed(x)
    assert torch.equal(y, layer(x))
    assert not y.requires_grad


def test_parts_that_do_not_fit_are_refused() -> None:
    weight = _weight(("ternary", "base3"), (3, 10, 1), "per row")
    ternary, base3 = weight.grid, weight.codec
    with pytest.raises(ValueError, match="to 6 bytes"):
        PackedWeight(weight.packed[:-1], weight.scale, (3, 10), ternary, base3)
    with pytest.raises(ValueError, match="too few for grid prime7"):
        PackedWeight(weight.packed, weight.scale, (3, 10), GRIDS["prime7"], base3)
    for scale in (torch.ones(2, 1), torch.ones(3, 4), torch.ones(3), torch.ones(3, 1).double()):
        with pytest.raises(ValueError, match=r"float32 \[3 or 1"):
            PackedWeight(weight.packed, scale, (3, 10), ternary, base3)


def test_a_code_beyond_the_grid_is_refused() -> None:
    codes = torch.full((2, 8), 3, dtype=torch.uint8)
    codec = CODECS["bits2"]
    weight = PackedWeight(codec.pack(codes), torch.ones(1, 1), (2, 8), GRIDS["ternary"], codec)
    with pytest.raises(ValueError, match="code 3 is not a level of grid ternary"):
        weight.codes()
