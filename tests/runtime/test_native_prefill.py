"""Prompts in one C call: the bits of decoding token by token, whatever the cache and the parts.

Decoding is held to the torch modules in test_native_decoder and test_native_cache.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.runtime.packed_toys import pack_shape
from torch import Tensor

from trilith.kernels import available_isas
from trilith.model import CacheConfig, KVCache, ModelConfig
from trilith.quant import QuantConfig
from trilith.runtime import Engine
from trilith.runtime.native_decoder import NewTokens

pytestmark = pytest.mark.skipif(not available_isas(), reason="no C compiler")

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
PRIME7 = QuantConfig("prime7", "least_squares", "row", None, 8)
# Head widths that fill vectors, and that do not; one query head a key head, and three.
SHAPES = [
    ModelConfig("wide", 37, 160, 2, 4, 2, "swiglu", 40, 400, 1e4, 1e-5, True, True, True),
    ModelConfig("narrow", 37, 24, 3, 6, 2, "relu2", 40, 400, 1e4, 1e-5, False, True, False, True),
    ModelConfig("single", 37, 48, 1, 4, 4, "gated_relu2", 72, 400, 1e4, 1e-5, False, False, True),
]
WINDOWS = [(None, 0), (45, 3), (45, 0), (70, 40), (9, 2)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.name)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    quant = PRIME7 if request.param.name == "narrow" else TERNARY
    return pack_shape(tmp_path_factory.mktemp("packed"), request.param, quant)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _load(path: Path, kernels: str, cache: CacheConfig) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILITH_KERNELS", kernels)
        return Engine.load(path, cache=cache)


def _tokens(num_batch: int, num_tokens: int, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 37, (num_batch, num_tokens), generator=generator)


def _run(engine: Engine, tokens_BT: Tensor, lengths: list[int]) -> tuple[Tensor, KVCache]:
    """Logits after each part of so many tokens, and the cache."""
    assert engine.decoder is not None
    cache = engine.new_cache(batch_size=len(tokens_BT), capacity=tokens_BT.shape[1])
    assert isinstance(cache, KVCache)
    parts = tokens_BT.split(lengths, dim=1)
    return torch.stack([engine.decoder.run([NewTokens(p, cache)]) for p in parts], dim=1), cache


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_prompt_has_the_bits_of_its_tokens_one_by_one(
    path: Path, bits: int, window: tuple[int | None, int]
) -> None:
    engine = _load(path, "auto", CacheConfig(bits, *window))  # type: ignore[arg-type]
    tokens_BT = _tokens(2, 201)
    one_by_one, filled = _run(engine, tokens_BT, [1] * 201)
    most = engine.new_cache(batch_size=1, capacity=1).num_recent if window[0] else 201
    for length in (201, 150, 64, 33, 32, 7):
        length = min(length, most)
        lengths = [length] * (201 // length) + ([201 % length] if 201 % length else [])
        logits, cache = _run(engine, tokens_BT, lengths)
        ends = torch.tensor(lengths).cumsum(0) - 1
        assert torch.equal(logits, one_by_one[:, ends]), length
        for rows in ("keys", "values"):
            pairs = zip(getattr(cache, rows).tensors, getattr(filled, rows).tensors, strict=True)
            # Slots that nothing was written to hold anything; all windows fill nine.
            same = (torch.equal(a[:, :, :, :9], b[:, :, :, :9]) for a, b in pairs)
            assert all(same), (length, rows)


@pytest.mark.parametrize("bits", [32, 8])
def test_instruction_sets_and_threads_change_no_bit(path: Path, bits: int) -> None:
    cache = CacheConfig(bits, 90, 3)  # type: ignore[arg-type]
    tokens_BT = _tokens(2, 120)
    torch.set_num_threads(1)
    expected, _ = _run(_load(path, "scalar", cache), tokens_BT, [70, 50])
    for kernels in available_isas():
        engine = _load(path, kernels, cache)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found, _ = _run(engine, tokens_BT, [70, 50])
            assert torch.equal(found, expected), (kernels, threads)


def test_prompts_and_decoding_steps_run_together_as_alone(path: Path) -> None:
    engine = _load(path, "auto", CacheConfig(8))
    assert engine.decoder is not None
    prompts = [_tokens(1, length, seed=length) for length in (60, 1, 133)]
    alone, caches = [], []
    for prompt in prompts:
        alone.append(_run(engine, prompt, [prompt.shape[1]])[0][:, -1])
        caches.append(engine.new_cache(batch_size=1, capacity=200))
    parts = [NewTokens(p, c) for p, c in zip(prompts, caches, strict=True)]  # type: ignore[arg-type]
    assert torch.equal(engine.decoder.run(parts), torch.cat(alone))


def test_a_prompt_has_the_logits_of_the_torch_modules(path: Path) -> None:
    tokens_BT = _tokens(2, 150)
    logits = []
    for kernels in ("torch", "auto"):
        engine = _load(path, kernels, CacheConfig())
        cache = engine.new_cache(batch_size=2, capacity=150)
        logits.append(engine.prefill(tokens_BT, cache=cache))
    # A last bit may turn a rounding to int8: see test_native_decoder.
    assert (logits[1] - logits[0]).abs().max() < 0.1 * logits[0].abs().max()


def test_a_prompt_that_names_no_token_stores_nothing(path: Path) -> None:
    engine = _load(path, "auto", CacheConfig())
    cache = engine.new_cache(batch_size=1, capacity=10)
    assert engine.decoder is not None and isinstance(cache, KVCache)
    with pytest.raises(IndexError, match=r"\[3, 37, 5\] are not in 0\.\.36"):
        engine.decoder.run([NewTokens(torch.tensor([[3, 37, 5]]), cache)])
    with pytest.raises(ValueError, match="holds 10 tokens and 11 are asked for"):
        engine.decoder.run([NewTokens(_tokens(1, 11), cache)])
    assert cache.length == 0
