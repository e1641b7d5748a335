"""Kept caches of the native kernels: whole prompts and answers, cut anywhere, no bit changed.

The reference is the same engine without any.
"""

from pathlib import Path

import pytest
import torch
from tests.runtime.packed_toys import pack_shape
from torch import Tensor

from trilith.kernels import available_isas
from trilith.model import CacheConfig, KVCache, ModelConfig
from trilith.quant import QuantConfig
from trilith.runtime import Continuation, Engine, GenerateConfig, KeptCaches, SamplingConfig

pytestmark = pytest.mark.skipif(not available_isas(), reason="no C compiler")

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
SHAPE = ModelConfig("toy", 37, 24, 2, 6, 2, "swiglu", 40, 700, 1e4, 1e-5, True, True, False)
NUM_NEW = 20
GREEDY = GenerateConfig(NUM_NEW, (), SamplingConfig(0.0, None, None, 1.0, 0))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_shape(tmp_path_factory.mktemp("packed"), SHAPE, TERNARY)


def _ids(number: int, *, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 37, (number,), generator=generator).tolist()


def _run(
    engine: Engine, ids: list[int], kept: KeptCaches | None
) -> tuple[list[int], list[Tensor], int]:
    """The answer, the logits before each of its tokens, and how many tokens were reused."""
    one = Continuation(engine, ids, config=GREEDY, kept=kept)
    logits = None
    while logits is None:
        logits = one.run_part()
    answer, found = [], [logits]
    while (token := one.draw(found[-1])) is not None:
        answer.append(token)
        if one.is_over:
            break
        assert one.next_B is not None
        found.append(engine.decode_one_token(one.next_B, cache=one.cache))
    return answer, found, one.num_reused


def _require_same(engine: Engine, ids: list[int], kept: KeptCaches, *, reused: int) -> list[int]:
    answer, expected, _ = _run(engine, ids, None)
    _, found, num_reused = _run(engine, ids, kept)
    assert num_reused == reused
    assert all(map(torch.equal, found, expected))
    return answer


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_conversation_runs_only_what_is_new(path: Path, bits: int) -> None:
    engine, kept = Engine.load(path, cache=CacheConfig(bits)), KeptCaches(2)  # type: ignore[arg-type]
    ids, known = _ids(133), 0
    for turn in range(4):
        answer = _require_same(engine, ids, kept, reused=known)
        # The last token of an answer is handed out and not run.
        known = len(ids) + NUM_NEW - 1
        ids = [*ids, *answer, *_ids(1 + 30 * turn, seed=turn)]
    assert len(kept) == 1


@pytest.mark.parametrize(("bits", "grain"), [(32, 1), (16, 1), (8, 32), (4, 32)])
def test_what_differs_later_shares_what_comes_before(path: Path, bits: int, grain: int) -> None:
    engine, kept = Engine.load(path, cache=CacheConfig(bits)), KeptCaches(2)  # type: ignore[arg-type]
    ids = _ids(300)
    answer, _, _ = _run(engine, ids, kept)
    whole = [*ids, *answer, *_ids(20, seed=2)]
    for place in (310, 250, 70, 31, 5):
        other = [*whole[:place], (whole[place] + 1) % 37, *whole[place + 1 :]]
        _require_same(engine, other, kept, reused=place // grain * grain)
        # What was asked for now is kept, too, and would share more with the next one.
        kept = KeptCaches(2)
        _run(engine, ids, kept)


@pytest.mark.parametrize("window", [600, 90])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_window_keeps_prompts_alone_and_continues_them(
    path: Path, bits: int, window: int
) -> None:
    engine = Engine.load(path, cache=CacheConfig(bits, window, 3))  # type: ignore[arg-type]
    kept, ids = KeptCaches(2), _ids(500)
    for length, reused in [(133, 0), (134, 133), (201, 134), (202, 201)]:
        _require_same(engine, ids[:length], kept, reused=reused)
    _require_same(engine, [*ids[:150], (ids[150] + 1) % 37, *ids[151:300]], kept, reused=0)


def test_what_is_kept_has_the_bytes_of_its_tokens(path: Path) -> None:
    engine, kept = Engine.load(path), KeptCaches(3)
    _run(engine, _ids(330), kept)
    capacity = 330 + NUM_NEW - 1
    assert kept.nbytes == KVCache(SHAPE, batch_size=1, capacity=capacity).nbytes


def test_a_prompt_whose_answer_breaks_off_is_kept(path: Path) -> None:
    engine, kept = Engine.load(path), KeptCaches(2)
    one = Continuation(engine, _ids(70), config=GREEDY, kept=kept)
    while one.run_part() is None:
        assert not len(kept)
    assert kept.nbytes == KVCache(SHAPE, batch_size=1, capacity=70).nbytes
    assert _run(engine, _ids(70), kept)[2] == 69
