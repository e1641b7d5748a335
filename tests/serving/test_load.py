"""The server under load: bounds, clients that leave or dawdle, 200 at once, and its end."""

import http.client
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.serving.running import LIMITS, PATIENCE_S, Running, receive, running
from tests.serving.watched import WatchedEngine

from trilith.serving.app import Limits
from trilith.tokens import Tokenizer

SHORT: dict[str, Any] = {"model": "toy", "prompt": "def add", "max_tokens": 3, "temperature": 0}
# No id ends it early: a huge temperature draws all ids alike, so it may; then it is short.
LONG: dict[str, Any] = SHORT | {"prompt": [50], "max_tokens": 14_000, "stream": True}


def _begin(server: Running, asked: dict[str, Any]) -> http.client.HTTPResponse:
    """Send a request and wait for the first line of its stream."""
    connection = server.send("completions", asked)
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: {")
    # The socket lives as long as the response.
    return response


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_does_not_fit_the_line_is_told_to_come_back(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    limits = replace(LIMITS, num_requests=2)
    with running(engine, tokenizer, limits=limits, num_running=1) as server:
        first = _begin(server, LONG)
        second = server.send("completions", SHORT)
        _wait_until(lambda: server.post("completions", SHORT).status == 503)
        refused = server.post("chat/completions", SHORT)
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.headers["retry-after"] == "1"
        assert server.get("models").status == 200
        first.close()
        assert receive(second).status == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_its_place_and_its_cache(
    engine: WatchedEngine, tokenizer: Tokenizer, is_stream: bool
) -> None:
    with running(engine, tokenizer, limits=replace(LIMITS, num_requests=1)) as server:
        if is_stream:
            leaving: Any = _begin(server, LONG)
        else:
            leaving = server.send("completions", LONG | {"stream": False})
            _wait_until(lambda: len(engine.held_caches) > 0)
        assert server.post("completions", SHORT).status == 503
        leaving.close()
        _wait_until(lambda: server.post("completions", SHORT).status == 200)
        _wait_until(lambda: len(engine.held_caches) == 0)


def test_two_hundred_clients_at_once_get_their_answers_and_leave_nothing(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    num_threads = threading.active_count()
    with running(engine, tokenizer, limits=replace(LIMITS, num_requests=200)) as server:
        expected = server.post("completions", SHORT).json()["choices"]
        num_files = _num_open_files()
        _ask_from_200_clients(server, expected)
        # What a thread's allocator keeps, it keeps once.
        rss_bytes = _rss_bytes()
        _ask_from_200_clients(server, expected)
        _wait_until(lambda: len(engine.held_caches) == 0)
        _wait_until(lambda: _num_open_files() <= num_files)
        assert _rss_bytes() - rss_bytes < 200 * 2**16
    _wait_until(lambda: threading.active_count() <= num_threads + 1)


def _ask_from_200_clients(server: Running, expected: list[Any]) -> None:
    """Half of them ask for a stream; all get the same choices."""
    with ThreadPoolExecutor(200) as clients:
        asked = [SHORT | {"stream": bool(number % 2)} for number in range(200)]
        answers = list(clients.map(lambda each: server.post("completions", each), asked))
    assert {answer.status for answer in answers} == {200}
    texts = {
        "".join(event["choices"][0]["text"] for event in answer.events())
        for answer in answers[1::2]
    }
    assert texts == {expected[0]["text"]}
    assert all(answer.json()["choices"] == expected for answer in answers[::2])


def _num_open_files() -> int:
    """Of this process, which is server and clients; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _rss_bytes() -> int:
    """Memory that this process holds; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)


def test_two_hundred_clients_beyond_the_bound_get_an_answer_or_an_error(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    limits = replace(LIMITS, num_requests=5)
    with running(engine, tokenizer, limits=limits, num_running=2) as server:
        first = _begin(server, LONG)
        with ThreadPoolExecutor(200) as clients:
            answers = list(clients.map(lambda _: server.post("completions", SHORT), range(200)))
        first.close()
        assert {answer.status for answer in answers} == {200, 503}
        _wait_until(lambda: server.post("completions", SHORT).status == 200)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_takes_too_long_ends_with_an_error(
    engine: WatchedEngine, tokenizer: Tokenizer, is_stream: bool
) -> None:
    with running(engine, tokenizer, limits=replace(LIMITS, time_s=0.5)) as server:
        answer = server.post("completions", LONG | {"stream": is_stream})
        assert b"took longer than the limit of 0.5 s" in answer.body
        if answer.status == 200:
            assert is_stream and b"[DONE]" not in answer.body
        else:
            # Also a stream, if not even its first token came in time.
            assert (answer.status, answer.headers["x-should-retry"]) == (504, "false")
        _wait_until(lambda: len(engine.held_caches) == 0)


def test_a_body_that_does_not_come_is_not_waited_for(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    limits = Limits(num_requests=1, body_bytes=1000, time_s=0.5)
    with running(engine, tokenizer, limits=limits) as server:
        connection = server.connect()
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-length", "100")
        connection.endheaders()
        answer = receive(connection)
        assert (answer.status, answer.json()["error"]["code"]) == (408, "timeout")


def test_a_server_that_stops_ends_what_runs_and_listens_no_more(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    with ThreadPoolExecutor(1) as reader:
        with running(engine, tokenizer) as server:
            rest = reader.submit(_begin(server, LONG).read)
        text = rest.result(timeout=60)
    assert b"the server is shutting down" in text and b"[DONE]" not in text
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_a_server_that_stops_lets_a_slow_client_read_why(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    def read_late(stream: http.client.HTTPResponse) -> bytes:
        _wait_until(lambda: not any(one.name == "model" for one in threading.enumerate()))
        time.sleep(0.3)
        return stream.read()

    with ThreadPoolExecutor(1) as reader:
        with running(engine, tokenizer) as server:
            stream = _begin(server, LONG)
            _wait_until(server.waits_for_reader)
            text = reader.submit(read_late, stream)
        assert b"the server is shutting down" in text.result(timeout=PATIENCE_S)


def test_a_server_that_stops_closes_on_a_client_that_does_not_read(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    with running(engine, tokenizer, farewell_s=0.5) as server:
        stream = _begin(server, LONG)
        _wait_until(server.waits_for_reader)
    with pytest.raises((OSError, http.client.IncompleteRead)):
        stream.read()


@pytest.mark.parametrize("change", [{"num_requests": 0}, {"body_bytes": 0}, {"time_s": 0.0}])
def test_limits_must_be_positive(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        replace(LIMITS, **change)
