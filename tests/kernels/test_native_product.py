"""Native products against the reference in int64, to the last bit."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from trilith.kernels import (
    Isa,
    NativeProduct,
    PackedWeight,
    layout_in_memory,
    layouts_for,
    pack_weight,
    packed_product,
)
from trilith.kernels.choice import ISA_NUMBERS
from trilith.kernels.native_path import repack, tile
from trilith.quant import (
    CODECS,
    GRIDS,
    Codec,
    Grid,
    QuantizedWeight,
    codecs_for,
    numerators_of,
    quantize_activation,
)

NUM_TOKENS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 70, 130)


class Case(NamedTuple):
    weight: PackedWeight
    x: Tensor
    expected: Tensor
    name: str


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _weight(
    grid_name: str, shape: tuple[int, int, int], scale_rows: int, seed: int = 0
) -> PackedWeight:
    grid = GRIDS[grid_name]
    num_out, num_in, num_groups = shape
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, grid.num_levels, (num_out, num_in), generator=generator)
    scale = torch.rand(scale_rows, num_groups, generator=generator) + 0.1
    weight = QuantizedWeight(codes.to(torch.uint8), scale)
    return pack_weight(weight, grid=grid, codec=codecs_for(grid.num_levels)[0])


def native(weight: PackedWeight, isa: Isa) -> NativeProduct:
    return NativeProduct(weight, isa, layout=layouts_for(weight.grid)[0])


def _reference(weight: PackedWeight, x: Tensor) -> Tensor:
    values, scale = quantize_activation(x)
    return packed_product(values.to(torch.int8), weight=weight) * scale


@cache
def _random_cases() -> list[Case]:
    """500 shapes, tails everywhere, each grid and each way to share scales."""
    rng = random.Random(0)
    cases = []
    for seed in range(500):
        grid = rng.choice(list(GRIDS))
        num_groups = rng.choice((1, 1, 1, 2, 3, 5, 8))
        group_in = rng.choice((rng.randint(1, 40), rng.randint(1, 300), 64, 128))
        shape = (rng.randint(1, 120), num_groups * group_in, num_groups)
        weight = _weight(grid, shape, rng.choice((1, shape[0])), seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rng.choice(NUM_TOKENS), shape[1], generator=generator)
        cases.append(Case(weight, x, _reference(weight, x), f"{grid} {shape} {len(x)} tokens"))
    return cases


def test_500_random_products_are_the_reference_to_the_last_bit(isa: Isa) -> None:
    for case in _random_cases():
        for layout in layouts_for(case.weight.grid):
            product = NativeProduct(case.weight, isa, layout=layout)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(product(case.x), case.expected), (case.name, layout, threads)


@pytest.mark.parametrize("shape", [(33, 2101, 1), (50, 1530, 3), (17, 1995, 57), (16, 640, 1)])
def test_prompts_of_every_length_have_the_bits_of_their_tokens_alone(
    isa: Isa, shape: tuple[int, int, int]
) -> None:
    """Groups longer and shorter than what the kernels unpack at once, and ends between."""
    x = torch.randn(270, shape[1], generator=torch.Generator().manual_seed(1))
    for grid in ("ternary", "prime7"):
        weight = _weight(grid, shape, shape[0])
        expected = _reference(weight, x)
        for layout in layouts_for(weight.grid):
            product = NativeProduct(weight, isa, layout=layout)
            for num_tokens in (*range(1, 42), 63, 65, 255, 256, 257, 259, 270):
                found = product(x[:num_tokens])
                assert torch.equal(found, expected[:num_tokens]), (grid, layout, num_tokens)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_all_outputs_are_written_and_nothing_beside_them(isa: Isa, num_tokens: int) -> None:
    weight = _weight("ternary", (45, 75, 1), 45)
    product = native(weight, isa)
    x = torch.randn(num_tokens, 75)
    around = torch.full((num_tokens + 2, 45), torch.nan)
    product.multiply_into(x, around[1:-1])
    assert torch.equal(around[1:-1], _reference(weight, x))
    assert around[0].isnan().all() and around[-1].isnan().all()


@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_the_number_of_threads_changes_no_bit(isa: Isa, grid: str, num_tokens: int) -> None:
    weight = _weight(grid, (1030, 2048, 4), 1030)
    product = native(weight, isa)
    x = torch.randn(num_tokens, 2048)
    found = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(product(x))
    assert all(torch.equal(y, found[0]) for y in found)
    assert torch.equal(found[0], _reference(weight, x))


def test_callers_in_several_threads_do_not_disturb_each_other(isa: Isa) -> None:
    weight = _weight("ternary", (512, 1024, 1), 1)
    product = native(weight, isa)
    inputs = [torch.randn(2 + i % 20, 1024) for i in range(100)]
    expected = [product(x) for x in inputs]
    torch.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(product, inputs))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_too(isa: Isa) -> None:
    torch.set_num_threads(2)
    product = native(_weight("ternary", (2048, 1024, 1), 1), isa)
    x = torch.randn(1, 1024)
    expected = product(x).numpy().tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if product(x).numpy().tobytes() == expected else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("grid", ["ternary", "prime7", "planes"])
def test_the_largest_sums_do_not_overflow(isa: Isa, grid: str) -> None:
    weight = _weight(grid, (17, 9001, 1), 1)
    highest = torch.full((17, 9001), GRIDS[grid].num_levels - 1, dtype=torch.uint8)
    weight = pack_weight(
        QuantizedWeight(highest, torch.ones(1, 1)), grid=weight.grid, codec=weight.codec
    )
    product = native(weight, isa)
    for num_tokens in (1, 5, 20):
        for sign in (-1.0, 1.0):
            x = torch.full((num_tokens, 9001), sign)
            assert torch.equal(product(x), _reference(weight, x))


def test_rounding_is_half_to_even_and_odd_tokens_are_those_of_torch(isa: Isa) -> None:
    weight = _weight("ternary", (20, 255, 3), 20)
    halves = torch.arange(-127, 128) / 2
    halves[0] = 127.0
    denormal = torch.full((255,), 1e-41)
    large = torch.linspace(-1, 1, 255) * 3e38
    x = torch.stack([halves, -halves, torch.zeros(255), denormal, large, halves * 1e-7])
    product = native(weight, isa)
    assert torch.equal(product(x), _reference(weight, x))
    assert torch.equal(torch.cat([product(token) for token in x.split(1)]), product(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_a_token_that_is_not_finite_gives_nan_to_itself_alone(
    isa: Isa, bad: float, num_tokens: int
) -> None:
    weight = _weight("ternary", (20, 70, 1), 1)
    x = torch.randn(num_tokens, 70)
    expected = _reference(weight, x)
    x[num_tokens // 2, 33] = bad
    found = native(weight, isa)(x)
    assert found[num_tokens // 2].isnan().all()
    expected[num_tokens // 2] = torch.nan
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_any_layout_and_dtype_of_activations(isa: Isa) -> None:
    weight = _weight("ternary", (20, 70, 1), 1)
    product = native(weight, isa)
    x = torch.randn(70, 3, 2).permute(2, 1, 0)
    assert torch.equal(product(x), _reference(weight, x))
    assert product(x).shape == (2, 3, 20)
    half = x.bfloat16()
    assert torch.equal(product(half), _reference(weight, half).bfloat16())
    assert product(x[:, :0]).shape == (2, 0, 20)
    assert torch.equal(product(x[0, 0]), _reference(weight, x[0, 0]))


def test_other_devices_are_refused(isa: Isa) -> None:
    product = native(_weight("ternary", (20, 70, 1), 1), isa)
    with pytest.raises(ValueError, match="got activations on meta"):
        product(torch.empty(1, 70, device="meta"))


def test_only_a_model_that_the_caches_cannot_hold_keeps_base_3() -> None:
    ternary, base3, vnni = GRIDS["ternary"], CODECS["base3"], Isa("vnni", ISA_NUMBERS["vnni"])
    large = {"grid": ternary, "codec": base3, "isa": vnni, "num_weights": 2**28, "group_in": 2048}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "base3"),
        ({"codec": CODECS["bits2"]}, "bits2"),
        ({"num_weights": 10**6}, "bits2"),
        ({"group_in": 2**16}, "bits2"),
        ({"isa": Isa("avx2", ISA_NUMBERS["avx2"])}, "bits2"),
        ({"isa": None}, "bits2"),
        ({"grid": GRIDS["prime7"], "codec": CODECS["bits3"]}, "bits4"),
        ({"grid": GRIDS["planes"], "codec": CODECS["planes"]}, "bits4"),
    ]
    for changes, expected in cases:
        assert layout_in_memory(**(large | changes)) == expected, changes  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [(g, c) for g in GRIDS.values() for c in codecs_for(g.num_levels)])
def test_tiles_from_the_bytes_of_a_file_are_those_of_its_levels(pair: tuple[Grid, Codec]) -> None:
    grid, codec = pair
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 1, 1), (7, 13, 1), (17, 51, 3), (40, 121, 11), (5, 80, 1), (19, 2603, 1))
    for num_out, num_in, num_groups in (*shapes, (33, 2734, 2)):
        codes = torch.randint(grid.num_levels, (num_out, num_in), generator=generator)
        given = QuantizedWeight(codes.to(torch.uint8), torch.rand(num_out, num_groups))
        weight = pack_weight(given, grid=grid, codec=codec)
        numerators = numerators_of(weight.codes(), grid, torch.int8)
        for layout in layouts_for(grid):
            expected = tile(numerators, weight.scale, grid=grid, layout=layout)
            found = repack(weight, layout=layout)
            assert all(torch.equal(*parts) for parts in zip(found, expected, strict=True))


@pytest.mark.parametrize("codec", ["base3", "bits2", "bits3", "planes"])
def test_bytes_that_no_codec_writes_are_refused_by_name(codec: str) -> None:
    grid = GRIDS["ternary"]
    codes = QuantizedWeight(torch.ones(17, 41, dtype=torch.uint8), torch.ones(1, 1))
    good = pack_weight(codes, grid=grid, codec=CODECS[codec])
    for at in (0, 3, len(good.packed) // 2, len(good.packed) - 1):
        packed = good.packed.clone()
        packed[at] = 255
        weight = replace(good, packed=packed)
        with pytest.raises(ValueError, match=r"codec|grid"):
            repack(weight, layout="bits2")


def test_sums_of_the_most_inputs_that_base_3_takes_do_not_overflow(isa: Isa) -> None:
    num_in = 2**15
    codes = torch.full((16, num_in), 2, dtype=torch.uint8)
    codes[1] = 0
    weight = pack_weight(
        QuantizedWeight(codes, torch.ones(1, 1)), grid=GRIDS["ternary"], codec=codecs_for(3)[0]
    )
    product = NativeProduct(weight, isa, layout="base3")
    for num_tokens in (1, 3, 20):
        x = torch.ones(num_tokens, num_in)
        assert torch.equal(product(x), _reference(weight, x))
