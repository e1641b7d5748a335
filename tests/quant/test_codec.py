"""Codecs against a plain loop over digits, at odd sizes, and against bytes that nothing writes."""

import pytest
import torch

from trilith.quant import CODECS, GRIDS, Codec, codecs_for

# Codecs whose bytes are digits of one number; planes have two.
ONE_PLANE = [codec for codec in CODECS.values() if codec.name != "planes"]
SHAPES = [(0,), (1,), (4,), (5,), (6,), (7, 13), (3, 5, 2), (64,), (1000,), (0, 5)]


def _codes(codec: Codec, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, codec.num_codes, shape, dtype=torch.uint8, generator=generator)


def _bytes_by_hand(codec: Codec, codes: list[int]) -> list[int]:
    packed: list[int] = []
    while len(codes) % codec.codes_per_unit:
        codes = [*codes, 0]
    for start in range(0, len(codes), codec.codes_per_unit):
        value = 0
        for code in reversed(codes[start : start + codec.codes_per_unit]):
            value = value * codec.num_codes + code
        packed += list(value.to_bytes(codec.bytes_per_unit, "little"))
    return packed


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpack_undoes_pack(codec: Codec, shape: tuple[int, ...]) -> None:
    codes = _codes(codec, shape)
    packed = codec.pack(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (codec.num_bytes(codes.numel()),)
    assert torch.equal(codec.unpack(packed, shape), codes)


@pytest.mark.parametrize("codec", ONE_PLANE, ids=[codec.name for codec in ONE_PLANE])
@pytest.mark.parametrize("count", [1, 7, 41])
def test_bytes_are_the_digits_from_the_low_end(codec: Codec, count: int) -> None:
    codes = _codes(codec, (count,), seed=count)
    assert codec.pack(codes).tolist() == _bytes_by_hand(codec, codes.tolist())


def test_planes_are_two_ternary_files_whose_levels_add_up() -> None:
    grid, base3 = GRIDS["planes"], CODECS["base3"]
    packed = CODECS["planes"].pack(_codes(CODECS["planes"], (41,)))
    first, second = (base3.unpack(half, (41,)).double() - 1 for half in packed.chunk(2))
    levels = torch.tensor(grid.levels, dtype=torch.double)[_codes(CODECS["planes"], (41,)).long()]
    assert torch.allclose(first / 5 + second / 3, levels, rtol=0, atol=1e-15)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_transposed_codes_pack_in_row_major_order(codec: Codec) -> None:
    codes = _codes(codec, (6, 9)).T
    assert torch.equal(codec.unpack(codec.pack(codes), (9, 6)), codes)


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [("base3", 20), ("bits1", 13), ("bits2", 25), ("bits3", 39), ("planes", 40)],
)
def test_bytes_of_a_hundred_codes(name: str, num_bytes: int) -> None:
    assert CODECS[name].num_bytes(100) == num_bytes


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_code_that_does_not_fit_is_refused(codec: Codec) -> None:
    codes = _codes(codec, (10,))
    codes[3] = codec.num_codes
    with pytest.raises(ValueError, match=f"does not fit codec {codec.name}"):
        codec.pack(codes)


def test_codes_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        CODECS["base3"].pack(torch.tensor([-1, 0, 1], dtype=torch.int8))


@pytest.mark.parametrize("byte", range(243, 256))
def test_bytes_above_242_are_refused_by_base3(byte: int) -> None:
    with pytest.raises(ValueError, match="not a value of codec base3"):
        CODECS["base3"].unpack(torch.tensor([byte], dtype=torch.uint8), (5,))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_padding_that_is_not_zero_is_refused(codec: Codec) -> None:
    full = codec.pack(torch.ones(codec.codes_per_unit, dtype=torch.uint8))
    with pytest.raises(ValueError, match="padding"):
        codec.unpack(full, (codec.codes_per_unit - 1,))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_wrong_length_is_refused(codec: Codec) -> None:
    packed = codec.pack(_codes(codec, (33,)))
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed[:0]):
        with pytest.raises(ValueError, match="expects"):
            codec.unpack(wrong, (33,))
    with pytest.raises(ValueError, match="uint8"):
        codec.unpack(packed.int(), (33,))


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ("sign", ["bits1", "base3", "bits2", "bits3", "planes"]),
        ("ternary", ["base3", "bits2", "bits3", "planes"]),
        ("prime5", ["bits3", "planes"]),
        ("prime7", ["bits3", "planes"]),
        ("planes", ["planes"]),
        ("uniform7", ["bits3", "planes"]),
    ],
)
def test_codecs_of_a_grid_come_smallest_first(grid: str, names: list[str]) -> None:
    assert [codec.name for codec in codecs_for(GRIDS[grid].num_levels)] == names
