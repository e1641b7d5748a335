"""What a cache keeps: precision by hand, windows against attention laid out anew."""

import math

import pytest
import torch
from tests.conftest import TOY
from torch import Tensor

from trilith.model import CacheConfig, KVCache
from trilith.model.cache_storage import (
    KEY_BLOCK,
    pack_codes,
    quantize_range,
    unpack_codes,
)
from trilith.model.cached_attention import attend_cached, attend_part, attend_plainly
from trilith.model.rope import rope_tables, rotate

BITS = [32, 16, 8, 4]
WINDOWS = [None, 45]


def _cache(bits: int, window: int | None = None, *, sinks: int = 3, capacity: int = 200) -> KVCache:
    config = CacheConfig(bits, window, sinks)  # type: ignore[arg-type]
    return KVCache(TOY, batch_size=2, capacity=capacity, config=config)


def _rows(num_tokens: int, seed: int = 0, *, num_heads: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # A mean by channel, as keys have it.
    return torch.randn(2, num_heads, num_tokens, 4, generator=generator) + torch.tensor(
        [0.0, 3.0, -50.0, 0.1]
    )


def _filled(cache: KVCache, rows: Tensor, parts: list[int]) -> KVCache:
    for part in rows.split(parts, dim=2):
        for layer in range(TOY.num_layers):
            cache.write(layer, part, -part)
        cache.advance(part.shape[2])
    return cache


def _seen(cache: KVCache, layer: int = 1) -> tuple[Tensor, Tensor]:
    keys, values, _ = zip(*cache.past(layer), strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [-1, 2])
def test_a_quantized_number_is_off_by_half_a_step(bits: int, dim: int) -> None:
    x = _rows(KEY_BLOCK)
    found = quantize_range(x, dim=dim, bits=bits).restore()
    least, most = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    # Half a step, and what the ends lose by bfloat16: 2^-9 of their size, for zero and for scale.
    bound = (most - least) / (2**bits - 1) / 2 + 2**-8 * torch.maximum(least.abs(), most.abs())
    assert ((found - x).abs() <= bound).all()
    assert torch.equal(quantize_range(torch.ones(4, 4), dim=0, bits=4).restore(), torch.ones(4, 4))


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_codes_unpack(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 5, 6), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, 5, 6 * bits // 8)
    assert torch.equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize(("bits", "close"), [(32, 0.0), (16, 0.2), (8, 0.6), (4, 4.0)])
def test_all_tokens_are_kept_in_their_order(bits: int, close: float) -> None:
    rows = _rows(100)
    keys, values = _seen(_filled(_cache(bits), rows, [100]))
    assert (keys - rows).abs().max() <= close
    assert (values + rows).abs().max() <= close


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("window", WINDOWS)
def test_how_tokens_come_changes_nothing(bits: int, window: int | None) -> None:
    rows = _rows(130)
    by_ones = _filled(_cache(bits, window), rows, [1] * 130)
    by_parts = _filled(_cache(bits, window), rows, [1, 2, 31, 40, 42, 14])
    for found, expected in zip(_seen(by_parts), _seen(by_ones), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_an_entry_is_quantized_once_and_never_again(bits: int) -> None:
    rows = _rows(160)
    cache = _cache(bits)
    _filled(cache, rows[:, :, :100], [100])
    before = [x.clone() for x in (*cache.keys.tensors[:3], *cache.values.tensors)]
    _filled(cache, rows[:, :, 100:], [1] * 60)
    after = (*cache.keys.tensors[:3], *cache.values.tensors)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        # Codes and values by token; scales of keys by block. Three blocks were full.
        num = 100 if index > 2 else 96 if index == 0 else 3
        assert torch.equal(old[:, :, :, :num], new[:, :, :, :num])


def test_the_newest_keys_stay_in_16_bits_until_their_block_is_full() -> None:
    rows = _rows(KEY_BLOCK)
    cache = _filled(_cache(4), rows[:, :, :-1], [KEY_BLOCK - 1])
    assert torch.equal(_seen(cache)[0], rows[:, :, :-1].bfloat16().float())
    _filled(cache, rows[:, :, -1:], [1])
    expected = quantize_range(rows.bfloat16().float(), dim=2, bits=4).restore()
    assert torch.equal(_seen(cache)[0], expected)


def _streaming_attention(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int) -> Tensor:
    """StreamingLLM from its definition: kept tokens in a row, rotated by their place in it.

    q, k and v are [B, H, T, C], not rotated.
    """
    out = torch.empty_like(q)
    for t in range(q.shape[2]):
        kept = [s for s in range(t + 1) if s < sinks or s > t - (window - sinks)]
        tables = rope_tables(torch.arange(len(kept)), q.shape[-1], TOY.rope_theta)
        keys = rotate(k[:, :, kept], *tables)
        query = rotate(q[:, :, t : t + 1], *(table[-1:] for table in tables))
        shares = (query @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        out[:, :, t] = (shares @ v[:, :, kept])[:, :, 0]
    return out


@pytest.mark.parametrize(("window", "sinks"), [(45, 3), (45, 0), (9, 4), (200, 4)])
@pytest.mark.parametrize("part", [1, 5])
def test_a_window_is_that_of_streaming_llm(window: int, sinks: int, part: int) -> None:
    q, k, v = (_rows(150, seed, num_heads=6 if seed == 0 else 2) for seed in range(3))
    k = k / 10
    repeated = (x.repeat_interleave(3, dim=1) for x in (k, v))
    expected = _streaming_attention(q, *repeated, window, sinks)
    cache = _cache(32, window, sinks=sinks)
    found = []
    for start in range(0, 150, part):
        tables = rope_tables(cache.positions(part), 4, TOY.rope_theta)
        own = slice(start, start + part)
        turned = [rotate(x[:, :, own], *tables) for x in (q, k)]
        found.append(attend_cached(*turned, v[:, :, own], cache=cache, layer=0))
        cache.advance(part)
    # Scores of some hundreds, of float32 angles.
    torch.testing.assert_close(torch.cat(found, dim=2), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("mask", [None, "causal", "bool"])
def test_a_part_is_that_of_plain_softmax(mask: str | None) -> None:
    q, k, v = (_rows(9, seed) / 10 for seed in range(3))
    # Nothing is seen by the last tokens.
    chosen = torch.arange(9) > torch.arange(9)[:, None] + 3 if mask == "bool" else mask
    found, expected = (f(q, k, v, mask=chosen) for f in (attend_part, attend_plainly))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_the_bits_and_their_scales(bits: int) -> None:
    cache = _cache(bits, capacity=3200)
    rows = TOY.num_layers * 2 * TOY.num_kv_heads * 3200
    expected = 2 * rows * 4 * bits // 8
    if bits < 16:
        # Scale and zero: of a value's row, of 32 tokens of a key's channel; and the newest block.
        expected += 4 * rows + 4 * rows * 4 // 32 + 2 * rows * 4 * 32 // 3200
    assert cache.nbytes == expected


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bits": 2}, "cache_bits=2 is not known"),
        ({"sinks": -1}, "sinks=-1"),
        ({"window": 4}, "window=4 has no room beside sinks=4"),
    ],
)
def test_an_impossible_cache_is_refused(changes: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CacheConfig(**changes)  # type: ignore[arg-type]


def test_more_than_a_window_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="43 tokens at once"):
        _filled(_cache(32, 45), _rows(43), [43])
