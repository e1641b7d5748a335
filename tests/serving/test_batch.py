"""The model's thread: steps of many, places that are freed, failures that stay alone."""

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.serving.watched import WatchedEngine

from trilith.runtime import GenerateConfig, KeptCaches, SamplingConfig
from trilith.serving import Batcher, Failed, Order, Piece, run_order
from trilith.tokens import Tokenizer

GREEDY = SamplingConfig(0.0, None, None, 1.0, 0)
# Far beyond any wait of a busy machine.
PATIENCE_S = 120


@pytest.fixture
def two_places(engine: WatchedEngine, tokenizer: Tokenizer) -> Iterator[Batcher]:
    batcher = Batcher(engine, tokenizer, num_running=2)
    yield batcher
    batcher.close()


def _order(*ids: int, num_new: int = 10, stop: tuple[str, ...] = ()) -> Order:
    return Order(ids, GenerateConfig(num_new, (2,), GREEDY), stop)


class Listener:
    """Collects what is told, also in one list with others."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name = name
        self.log = [] if log is None else log
        self.news: queue.SimpleQueue[Piece | Failed] = queue.SimpleQueue()

    def __call__(self, news: Piece | Failed) -> None:
        self.log.append(self.name)
        self.news.put(news)

    def all(self) -> list[Piece | Failed]:
        """Everything up to the end."""
        heard = []
        while not heard or (not isinstance(heard[-1], Failed) and not heard[-1].finish_reason):
            heard.append(self.news.get(timeout=PATIENCE_S))
        return heard


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_text_comes_in_pieces_that_count_tokens_and_say_why_they_end(
    engine: WatchedEngine, tokenizer: Tokenizer, two_places: Batcher
) -> None:
    ids = list(engine.generate([1, 50, 60], config=_order(num_new=30).generation))
    listener = Listener()
    two_places.submit(_order(1, 50, 60, num_new=30), listener)
    pieces = listener.all()
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert [piece.num_tokens for piece in pieces] == list(range(1, 31))
    assert [piece.finish_reason for piece in pieces] == [None] * 29 + ["length"]


def test_a_stop_id_ends_a_text_before_its_length(
    engine: WatchedEngine, tokenizer: Tokenizer, two_places: Batcher
) -> None:
    ids = list(engine.generate([1, 50, 60], config=_order(num_new=30).generation))
    num_before = ids.index(ids[20])
    order = Order((1, 50, 60), GenerateConfig(30, (ids[20],), GREEDY))
    listener = Listener()
    two_places.submit(order, listener)
    pieces = listener.all()
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids[:num_before])
    assert pieces[-1][1:] == (num_before, "stop")


def test_requests_decode_together_and_get_what_they_would_get_alone(
    engine: WatchedEngine, tokenizer: Tokenizer, two_places: Batcher
) -> None:
    prompts = {"a": (1, 50), "b": (1, 60, 70), "c": (1, 80)}
    log: list[str] = []
    entered, gate = threading.Event(), threading.Event()

    def hold(_: Piece | Failed) -> None:
        entered.set()
        gate.wait(PATIENCE_S)

    # The thread waits in this listener until all three stand in line.
    first = two_places.submit(_order(1, num_new=1), hold)
    entered.wait(PATIENCE_S)
    listeners = {name: Listener(name, log) for name in prompts}
    for name, ids in prompts.items():
        two_places.submit(_order(*ids, num_new=8), listeners[name])
    gate.set()
    for name, ids in prompts.items():
        alone = tokenizer.decode(engine.generate(ids, config=_order(num_new=8).generation))
        assert "".join(piece.text for piece in listeners[name].all()) == alone
    assert first.is_over
    # Two run at once; the third waits for a place.
    assert log == ["a", "b"] * 8 + ["c"] * 8


def test_requests_of_all_kinds_get_together_what_they_get_alone(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    settings = [
        GREEDY,
        SamplingConfig(2.0, None, None, 1.0, 7),
        SamplingConfig(1.5, 20, None, 1.3, 8),
        SamplingConfig(3.0, None, 0.9, 1.0, 9),
        SamplingConfig(0.0, None, None, 5.0, 0),
        SamplingConfig(2.0, None, None, 1.0, 7),
    ]
    orders = [
        Order(
            tuple(3 + (number * 31 + place) % 290 for place in range(length)),
            GenerateConfig(num_new, (2,), sampling),
            ("qu",) if number % 2 else (),
        )
        for number, (sampling, length, num_new) in enumerate(
            zip(settings, (5, 130, 64, 1, 200, 30), (40, 20, 60, 50, 10, 33), strict=True)
        )
    ]
    alone = [list(run_order(order, engine=engine, tokenizer=tokenizer)) for order in orders]
    for num_running in (3, 6):
        batcher = Batcher(engine, tokenizer, num_running=num_running, kept=KeptCaches(2))
        listeners = [Listener() for _ in orders]
        for order, listener in zip(orders, listeners, strict=True):
            batcher.submit(order, listener)
        found = [listener.all() for listener in listeners]
        batcher.close()
        assert found == alone


def test_a_long_prompt_runs_between_the_steps_of_others(
    engine: WatchedEngine, two_places: Batcher
) -> None:
    log: list[str] = []
    quick, slow = Listener("quick", log), Listener("slow", log)
    num_parts = 15
    first = two_places.submit(_order(1, num_new=5_000), quick)
    quick.news.get(timeout=PATIENCE_S)
    num_before = len(log)
    two_places.submit(_order(*[50] * (num_parts * engine.part_tokens), num_new=1), slow)
    slow.all()
    first.cancel()
    # At least a token a part; some more were drawn before it came.
    assert log.index("slow") - num_before >= num_parts - 1


def test_a_step_that_fails_ends_its_requests_and_not_those_after(
    engine: WatchedEngine, two_places: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "in_token", fail)
        listeners = [Listener() for _ in range(2)]
        for listener in listeners:
            two_places.submit(_order(1, num_new=50), listener)
        for listener in listeners:
            assert "MemoryError" in listener.all()[-1].reason
    after = Listener()
    two_places.submit(_order(1), after)
    assert after.all()[-1].finish_reason == "length"


def test_a_cancelled_request_is_told_nothing_more_and_gives_its_cache_back(
    engine: WatchedEngine, two_places: Batcher
) -> None:
    running, waiting = Listener(), Listener()
    tickets = [two_places.submit(_order(1, num_new=15_000), running) for _ in range(2)]
    tickets.append(two_places.submit(_order(1, num_new=15_000), waiting))
    running.news.get(timeout=PATIENCE_S)
    assert 1 <= len(engine.held_caches) <= 2
    for ticket in tickets:
        ticket.cancel()
    last = Listener()
    two_places.submit(_order(1, num_new=2), last)
    assert last.all()[-1].num_tokens == 2
    _wait_until(lambda: len(engine.held_caches) == 0)
    assert waiting.news.empty()


def test_a_request_that_is_cancelled_while_its_token_is_drawn_stays_cancelled(
    engine: WatchedEngine, two_places: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted, cancelled = threading.Event(), threading.Event()

    def cancel() -> None:
        submitted.wait(PATIENCE_S)
        ticket.cancel()
        cancelled.set()

    monkeypatch.setattr(engine, "in_token", cancel)
    listener = Listener()
    ticket = two_places.submit(_order(1, num_new=15_000), listener)
    submitted.set()
    cancelled.wait(PATIENCE_S)
    _wait_until(lambda: len(engine.held_caches) == 0)
    assert listener.news.qsize() <= 2


def test_a_request_that_fails_ends_alone(two_places: Batcher) -> None:
    good, bad, after = Listener(), Listener(), Listener()
    two_places.submit(_order(1, num_new=50), good)
    # Unchecked, so the engine itself refuses it.
    two_places.submit(_order(1, 999), bad)
    assert [type(news) for news in bad.all()] == [Failed]
    assert good.all()[-1].num_tokens == 50
    two_places.submit(_order(1), after)
    assert after.all()[-1].finish_reason == "length"


def test_closing_tells_all_who_wait_and_ends_the_thread(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    num_threads = threading.active_count()
    batcher = Batcher(engine, tokenizer, num_running=1)
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        batcher.submit(_order(1, num_new=15_000), listener)
    batcher.close()
    for listener in listeners:
        assert listener.all()[-1] == Failed("the server is shutting down")
    assert threading.active_count() == num_threads
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(_order(1), Listener())
    batcher.close()


def test_at_least_one_request_must_run(engine: WatchedEngine, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="0 requests at once"):
        Batcher(engine, tokenizer, num_running=0)
