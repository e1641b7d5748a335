"""Decoding in C from caches of every kind against the torch modules; endless streams.

The same allowance for int8 activations as in test_native_decoder.
"""

import resource
from pathlib import Path

import pytest
import torch
from tests.runtime.packed_toys import pack_shape
from torch import Tensor

from trilith.kernels import available_isas
from trilith.model import CacheConfig, KVCache, ModelConfig
from trilith.quant import QuantConfig
from trilith.runtime import Engine, GenerateConfig, SamplingConfig

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
# Head widths that fill vectors, and that do not.
WIDE = ModelConfig("toy", 37, 160, 2, 4, 2, "swiglu", 40, 200, 1e4, 1e-5, True, True, True)
NARROW = ModelConfig("toy", 37, 24, 2, 6, 2, "relu2", 40, 200, 1e4, 1e-5, False, True, False)
GREEDY = SamplingConfig(0.0, None, None, 1.0, 0)

native = pytest.mark.skipif(not available_isas(), reason="no C compiler")


@pytest.fixture(scope="module", params=[WIDE, NARROW], ids=["wide", "narrow"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_shape(tmp_path_factory.mktemp("packed"), request.param, TERNARY)


def _load(path: Path, kernels: str, cache: CacheConfig) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILITH_KERNELS", kernels)
        return Engine.load(path, cache=cache)


def _decode(engine: Engine, tokens_BT: Tensor) -> tuple[Tensor, KVCache]:
    cache = engine.new_cache(batch_size=len(tokens_BT), capacity=tokens_BT.shape[1])
    logits = [engine.decode_one_token(step, cache=cache) for step in tokens_BT.unbind(dim=1)]
    return torch.stack(logits, dim=1), cache


def _tokens(num_batch: int, num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 37, (num_batch, num_tokens), generator=generator)


@native
@pytest.mark.parametrize("window", [None, 45])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_logits_and_cache_are_those_of_the_torch_modules(
    path: Path, bits: int, window: int | None
) -> None:
    config = CacheConfig(bits, window, 3)  # type: ignore[arg-type]
    tokens_BT = _tokens(2, 100)
    expected, by_torch = _decode(_load(path, "torch", config), tokens_BT)
    found, by_c = _decode(_load(path, "auto", config), tokens_BT)
    errors = (found - expected).abs().amax(-1) / expected.abs().amax(-1)
    # The int8 head meets activations of 16 bits. A last bit may also turn a rounding of the cache:
    # a step of 4 bits is wide.
    assert errors.median() < (1e-4 if bits == 32 else 2e-2)
    assert errors.max() < 0.2
    for rows in ("keys", "values"):
        pairs = zip(getattr(by_c, rows).tensors, getattr(by_torch, rows).tensors, strict=True)
        for mine, theirs in pairs:
            # Layer 0 has seen nothing but embeddings: only last bits can differ there.
            same = mine[0] == theirs[0] if bits < 32 else torch.isclose(mine[0], theirs[0])
            assert same.float().mean() > 0.99


@native
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_instruction_sets_and_threads_change_no_bit_of_any_cache(path: Path, bits: int) -> None:
    tokens_BT = _tokens(2, 80)
    config = CacheConfig(bits, 45)  # type: ignore[arg-type]
    expected, _ = _decode(_load(path, "scalar", config), tokens_BT)
    before = torch.get_num_threads()
    try:
        for kernels in available_isas():
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(_decode(_load(path, kernels, config), tokens_BT)[0], expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_window_changes_nothing_while_nothing_was_dropped(
    path: Path, kernels: str, bits: int
) -> None:
    tokens_BT = _tokens(1, 60)
    plain, _ = _decode(_load(path, kernels, CacheConfig(bits, 60, 0)), tokens_BT)  # type: ignore[arg-type]
    whole, _ = _decode(_load(path, kernels, CacheConfig(bits)), tokens_BT)  # type: ignore[arg-type]
    assert torch.equal(plain, whole)


@native
def test_sinks_change_nothing_while_nothing_was_dropped(path: Path) -> None:
    tokens_BT = _tokens(1, 60)
    with_sinks, _ = _decode(_load(path, "auto", CacheConfig(32, 60, 4)), tokens_BT)
    whole, _ = _decode(_load(path, "auto", CacheConfig()), tokens_BT)
    # Sinks are tiles of their own, so that floats are added in another order.
    errors = (with_sinks - whole).abs().amax(-1) / whole.abs().amax(-1)
    assert errors.median() < 1e-5
    assert errors.max() < 0.1


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_sequences_of_any_length_decode_together_as_alone(path: Path, kernels: str) -> None:
    engine = _load(path, kernels, CacheConfig(8))
    prompts = [_tokens(1, length) for length in (3, 70, 33)]
    alone, caches = [], []
    for prompt in prompts:
        for results in (alone, None):
            cache = engine.new_cache(batch_size=1, capacity=100)
            engine.prefill(prompt, cache=cache)
            if results is None:
                caches.append(cache)
            else:
                steps = [torch.tensor([7]), torch.tensor([9])]
                results.append([engine.decode_one_token(s, cache=cache) for s in steps])
    for index, token in enumerate((7, 9)):
        together = engine.decode_together(torch.tensor([token] * 3), caches=caches)
        assert torch.equal(together, torch.cat([steps[index] for steps in alone]))


def test_a_long_prompt_runs_in_parts_through_a_window(path: Path) -> None:
    engine = _load(path, "auto", CacheConfig(32, 45))
    tokens_BT = _tokens(1, 170)
    cache = engine.new_cache(batch_size=1, capacity=170)
    found = engine.prefill(tokens_BT, cache=cache)
    expected = _decode(engine, tokens_BT)[0][:, -1]
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_window_wider_than_the_context_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="window=201 is wider than the context of 200 tokens"):
        Engine.load(path, cache=CacheConfig(32, 201))


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "num_tokens"), [(32, 30_000), (4, 100_000)])
def test_a_long_stream_takes_constant_memory(bits: int, num_tokens: int, tmp_path: Path) -> None:
    shape = ModelConfig("tiny", 37, 8, 1, 2, 1, "relu2", 8, 64, 1e4, 1e-5, False, False, True)
    config = CacheConfig(bits, 64)  # type: ignore[arg-type]
    engine = Engine.load(pack_shape(tmp_path, shape, TERNARY), cache=config)
    if engine.decoder is None:
        num_tokens = 2_000
    stream = engine.generate([1, 5, 9], config=GenerateConfig(num_tokens, (), GREEDY))
    for number, token in enumerate(stream):
        assert 0 <= token < 37
        if number == num_tokens // 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert number == num_tokens - 1
    # Ten times as many tokens, in KiB on Linux; a row of the cache has 40 bytes or more.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1024


def test_logits_stay_finite_far_beyond_the_context(path: Path) -> None:
    engine = _load(path, "auto", CacheConfig(4, 45))
    logits, cache = _decode(engine, _tokens(1, 1000))
    assert cache.length == 1000 and cache.nbytes == _decode(engine, _tokens(1, 10))[1].nbytes
    assert logits.isfinite().all()
