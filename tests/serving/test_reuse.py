"""Kept caches in the server: same answers, less to run, and nothing half-written left behind."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.serving.running import LIMITS, Running, running
from tests.serving.watched import WatchedEngine

from trilith.model import KVCache
from trilith.runtime import Engine, GenerateConfig, KeptCaches, SamplingConfig
from trilith.tokens import Tokenizer

PROMPT = [1, *range(20, 220)]
GREEDY: dict[str, Any] = {"model": "toy", "temperature": 0, "max_tokens": 12}


@pytest.fixture
def kept() -> KeptCaches:
    return KeptCaches(3)


@pytest.fixture
def server(engine: Engine, tokenizer: Tokenizer, kept: KeptCaches) -> Iterator[Running]:
    with running(engine, tokenizer, kept=kept) as found:
        yield found


def _alone(engine: Engine, tokenizer: Tokenizer, ids: list[int], num_new: int) -> str:
    """Without any kept cache."""
    config = GenerateConfig(num_new, (2,), SamplingConfig(0.0, None, None, 1.0, 0))
    return tokenizer.decode(engine.generate(ids, config=config))


def test_a_conversation_that_goes_on_gets_the_same_answers(
    server: Running, engine: Engine, tokenizer: Tokenizer, kept: KeptCaches
) -> None:
    ids = list(PROMPT)
    for turn in range(4):
        answer = server.post("completions", GREEDY | {"prompt": ids})
        assert answer.json()["choices"][0]["text"] == _alone(engine, tokenizer, ids, 12)
        ids += [40 + turn] * 50
    # Each turn leaves its own answer out, so that only the prompts begin each other.
    assert len(kept) == 3


def test_clients_that_leave_or_run_out_of_time_leave_only_whole_caches(
    engine: WatchedEngine, tokenizer: Tokenizer, kept: KeptCaches
) -> None:
    long = GREEDY | {"max_tokens": 14_000, "stream": True}
    with running(engine, tokenizer, kept=kept, limits=replace(LIMITS, time_s=1.0)) as server:
        leaving = server.send("completions", long | {"prompt": PROMPT})
        response = leaving.getresponse()
        response.readline()
        response.close()
        leaving.close()
        late = server.post("completions", long | {"prompt": [1, *range(30, 200)]})
        assert b"took longer than the limit" in late.body
    # Whole prompts alone, the second one if it was run in time.
    sizes = [KVCache(engine.config, batch_size=1, capacity=num).nbytes for num in (201, 171)]
    assert kept.nbytes in (sizes[0], sum(sizes))
    with running(engine, tokenizer, kept=kept) as server:
        for ids in (PROMPT, [*PROMPT, 7, 8], [1, *range(30, 200), 9]):
            answer = server.post("completions", GREEDY | {"prompt": ids})
            assert answer.json()["choices"][0]["text"] == _alone(engine, tokenizer, ids, 12)
