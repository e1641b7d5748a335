"""Kept caches where torch modules run prompts: what they save, that they change no bit, what goes.

The reference is the same engine without any. Where native kernels run prompts they keep more:
test_kept_answers.
"""

from pathlib import Path

import pytest
import torch
from tests.runtime.packed_toys import pack_shape
from torch import Tensor

from trilith.model import CacheConfig, KVCache, ModelConfig
from trilith.quant import QuantConfig
from trilith.runtime import Continuation, Engine, GenerateConfig, KeptCaches, SamplingConfig

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
SHAPE = ModelConfig("toy", 37, 24, 2, 6, 2, "swiglu", 40, 700, 1e4, 1e-5, True, True, False)
GREEDY = GenerateConfig(20, (), SamplingConfig(0.0, None, None, 1.0, 0))
CACHES = [
    *(CacheConfig(bits) for bits in (32, 16, 8, 4)),
    # While nothing was dropped, and beyond.
    *(CacheConfig(bits, window, 3) for bits in (32, 8) for window in (600, 90)),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_shape(tmp_path_factory.mktemp("packed"), SHAPE, TERNARY)


@pytest.fixture(autouse=True)
def _torch_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "torch")


def _ids(number: int, *, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 37, (number,), generator=generator).tolist()


def _run(engine: Engine, ids: list[int], kept: KeptCaches | None) -> tuple[list[Tensor], int]:
    """Logits after a prompt and after each of 20 greedy tokens; tokens that were reused."""
    one = Continuation(engine, ids, config=GREEDY, kept=kept)
    logits = None
    while logits is None:
        logits = one.run_part()
    found = [logits]
    while one.draw(found[-1]) is not None and not one.is_over:
        assert one.next_B is not None
        found.append(engine.decode_one_token(one.next_B, cache=one.cache))
    return found, one.num_reused


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_longer_prompt_runs_only_what_is_new_and_changes_no_bit(
    path: Path, cache: CacheConfig
) -> None:
    engine, kept = Engine.load(path, cache=cache), KeptCaches(2)
    ids = _ids(500)
    # Other lengths, so that rows lie elsewhere in memory; the last ends with a part.
    for length, reused in [(133, 0), (134, 128), (201, 128), (320, 192), (321, 320), (500, 320)]:
        expected, _ = _run(engine, ids[:length], None)
        found, num_reused = _run(engine, ids[:length], kept)
        assert num_reused == reused
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("bits", [32, 8])
def test_a_dense_model_that_decodes_natively_keeps_its_prompts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "auto")
    path = pack_shape(tmp_path, SHAPE, None)
    engine, kept = Engine.load(path, cache=CacheConfig(bits)), KeptCaches(2)  # type: ignore[arg-type]
    ids = _ids(300)
    answered, _ = _run(engine, ids[:150], kept)
    ids[150:170] = [int(logits_BV.argmax()) for logits_BV in answered[:20]]
    for length, reused in [(165, 128), (200, 128), (300, 192)]:
        expected, _ = _run(engine, ids[:length], None)
        found, num_reused = _run(engine, ids[:length], kept)
        assert num_reused == reused
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_what_differs_later_shares_the_parts_before(path: Path, bits: int) -> None:
    engine, kept = Engine.load(path, cache=CacheConfig(bits)), KeptCaches(2)  # type: ignore[arg-type]
    ids = _ids(300)
    _run(engine, ids, kept)
    # A block of a quantized cache that was closed in the middle of the difference.
    for place, reused in [(250, 192), (70, 64), (63, 0)]:
        other = [*ids[:place], (ids[place] + 1) % 37, *ids[place + 1 :]]
        expected, _ = _run(engine, other, None)
        found, num_reused = _run(engine, other, kept)
        assert num_reused == reused
        assert all(map(torch.equal, found, expected))
    assert _run(engine, ids[:192], KeptCaches(1))[1] == 0


def test_a_window_that_dropped_tokens_is_only_continued(path: Path) -> None:
    engine, kept = Engine.load(path, cache=CacheConfig(32, 90, 4)), KeptCaches(2)
    ids = _ids(300)
    _run(engine, ids, kept)
    assert _run(engine, [*ids[:250], 0, *ids[251:]], kept)[1] == 0


def test_the_same_prompt_again_runs_its_last_part(path: Path) -> None:
    engine, kept = Engine.load(path), KeptCaches(2)
    ids = _ids(128)
    expected, _ = _run(engine, ids, kept)
    found, num_reused = _run(engine, ids, kept)
    assert num_reused == 64
    assert all(map(torch.equal, found, expected))
    assert len(kept) == 1


def test_the_least_recently_used_goes_first(path: Path) -> None:
    engine, kept = Engine.load(path), KeptCaches(2)
    first, second, third = (_ids(100, seed=seed) for seed in range(3))
    for ids in (first, second, first, third):
        _run(engine, ids, kept)
    reused = [_run(engine, ids, kept)[1] for ids in (first, third, second)]
    assert reused == [64, 64, 0]


def test_a_conversation_that_grows_takes_one_place_and_the_bytes_of_its_tokens(path: Path) -> None:
    engine, kept = Engine.load(path), KeptCaches(3)
    ids = _ids(400)
    for length in (70, 150, 330):
        _run(engine, ids[:length], kept)
    assert len(kept) == 1
    assert kept.nbytes == KVCache(SHAPE, batch_size=1, capacity=320).nbytes


def test_a_prompt_that_breaks_off_leaves_only_whole_caches(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, kept = Engine.load(path), KeptCaches(2)
    ids = _ids(300)
    _run(engine, ids[:100], kept)
    broken = Continuation(engine, ids, config=GREEDY, kept=kept)
    broken.run_part()
    monkeypatch.setattr(engine, "prefill", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.run_part()
    monkeypatch.undo()
    assert (len(kept), kept.nbytes) == (1, KVCache(SHAPE, batch_size=1, capacity=64).nbytes)
    found, num_reused = _run(engine, ids, kept)
    assert num_reused == 64
    assert all(map(torch.equal, found, _run(engine, ids, None)[0]))


def test_at_least_one_cache_is_kept() -> None:
    with pytest.raises(ValueError, match="0 kept caches"):
        KeptCaches(0)


def test_kept_caches_never_take_more_bytes_than_they_may(path: Path) -> None:
    engine = Engine.load(path)
    per_token = engine.new_cache(batch_size=1, capacity=1).nbytes
    kept = KeptCaches(8, max_bytes=per_token * 320)
    prompts = [_ids(130, seed=seed) for seed in range(4)]
    for number, ids in enumerate(prompts, 1):
        _run(engine, ids, kept)
        assert len(kept) == min(number, 2)
        assert kept.nbytes == len(kept) * 128 * per_token
    # The newest two are there, and a longer one takes the place of the older of them.
    assert [_run(engine, ids, None)[1] for ids in prompts] == [0, 0, 0, 0]
    assert _run(engine, prompts[2], kept)[1] == 128
    _run(engine, _ids(200, seed=9), kept)
    assert kept.nbytes == (128 + 192) * per_token
    assert _run(engine, prompts[2], kept)[1] == 128
    # What is larger alone leaves all as it was.
    _run(engine, _ids(390, seed=10), kept)
    assert kept.nbytes == (128 + 192) * per_token
    with pytest.raises(ValueError, match="max_bytes=0 of kept caches"):
        KeptCaches(2, max_bytes=0)
