"""Connections that send too little, read too little or are too many: raw sockets on loopback."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.serving.running import LIMITS, PATIENCE_S, Running, running
from tests.serving.watched import WatchedEngine

from trilith.serving.server import make_server
from trilith.tokens import Tokenizer

SHORT: dict[str, Any] = {"model": "toy", "prompt": "def add", "max_tokens": 3, "temperature": 0}
LIST = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
# Its answer names the path.
LARGE = b"GET /v1/%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"x" * 30_000)
LONG_BODY = b'{"model":"toy","prompt":[50],"max_tokens":14000,"stream":true,"temperature":0}'
LONG = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
    len(LONG_BODY),
    LONG_BODY,
)


@contextmanager
def _connected(server: Running) -> Iterator[socket.socket]:
    """A client that the system keeps little for, so that not to read is felt at once."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", server.port))
        yield client


def _read_to_the_end(client: socket.socket) -> bytes:
    """What comes until the server closes, by an end or by a reset."""
    found = b""
    with suppress(ConnectionError):
        while part := client.recv(1 << 16):
            found += part
    return found


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _dribble(client: socket.socket, byte: bytes) -> threading.Thread:
    """Send a byte now and then, until the connection is closed."""

    def send() -> None:
        with suppress(OSError):
            while True:
                client.sendall(byte)
                time.sleep(0.1)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST /v1/compl", b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", LIST, LIST + LIST[:9]],
)
def test_a_connection_that_waits_for_its_header_is_closed(
    engine: WatchedEngine, tokenizer: Tokenizer, begun: bytes
) -> None:
    with running(engine, tokenizer, idle_s=1) as server, _connected(server) as client:
        client.sendall(begun)
        answers = _read_to_the_end(client)
        assert answers.count(b"HTTP/1.1 200 OK") == begun.count(LIST)
        assert server.get("models").status == 200


@pytest.mark.parametrize("begun", [b"GET /v1/mod", LIST + b"GET /v1/mod"])
def test_a_header_that_comes_byte_by_byte_is_not_waited_for(
    engine: WatchedEngine, tokenizer: Tokenizer, begun: bytes
) -> None:
    with running(engine, tokenizer, idle_s=1) as server, _connected(server) as client:
        client.sendall(begun)
        thread = _dribble(client, b"x")
        _read_to_the_end(client)
        client.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_request_may_come_slowly_as_long_as_its_header_does_not(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    with running(engine, tokenizer, idle_s=1) as server, _connected(server) as client:
        client.sendall(LONG[: -len(LONG_BODY)])
        time.sleep(2)
        client.sendall(LONG_BODY)
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_a_client_that_reads_nothing_loses_its_place(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    limits = replace(LIMITS, num_requests=1)
    with running(engine, tokenizer, limits=limits, idle_s=1) as server, _connected(server) as slow:
        slow.sendall(LONG)
        _wait_until(lambda: server.post("completions", SHORT).status == 503)
        began = time.monotonic()
        _wait_until(lambda: server.post("completions", SHORT).status == 200)
        # Long before the time limit of a request, by which it would be free in any case.
        assert time.monotonic() - began < LIMITS.time_s / 2
        _wait_until(lambda: len(engine.held_caches) == 0)
        assert b"[DONE]" not in _read_to_the_end(slow)


def test_a_client_that_reads_slowly_keeps_its_place_up_to_the_time_limit(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    limits = replace(LIMITS, num_requests=1, time_s=3)
    with running(engine, tokenizer, limits=limits) as server, _connected(server) as slow:
        began = time.monotonic()
        slow.sendall(LONG)
        freed = threading.Event()
        reader = threading.Thread(target=_sip, args=(slow, freed))
        reader.start()
        _wait_until(lambda: server.post("completions", SHORT).status == 503)
        _wait_until(lambda: server.post("completions", SHORT).status == 200)
        assert time.monotonic() - began > 2.9
        freed.set()
        reader.join(PATIENCE_S)
        _wait_until(lambda: len(engine.held_caches) == 0)


def _sip(client: socket.socket, enough: threading.Event) -> None:
    with suppress(ConnectionError):
        while not enough.is_set() and client.recv(1000):
            time.sleep(0.05)


def test_requests_whose_answers_nobody_reads_end_with_the_connection(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    with running(engine, tokenizer, idle_s=1) as server, _connected(server) as client:
        with pytest.raises(ConnectionError):
            for _ in range(5_000):
                client.sendall(LARGE)
        assert server.get("models").status == 200


def test_connections_have_a_bound_and_the_server_recovers(
    engine: WatchedEngine, tokenizer: Tokenizer
) -> None:
    def status() -> int:
        with suppress(ConnectionError):
            return server.get("models").status
        return 0

    with running(engine, tokenizer, num_connections=4) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        began = time.monotonic()
        # One too many: closed at once, and not after the time that a header may take.
        with _connected(server) as fifth:
            assert _read_to_the_end(fifth) == b""
        assert time.monotonic() - began < PATIENCE_S / 2
        silent.pop().close()
        _wait_until(lambda: status() == 503)
        for client in silent:
            client.close()
        _wait_until(lambda: status() == 200)
        assert [server.post("completions", SHORT).status for _ in range(9)] == [200] * 9


@pytest.mark.parametrize("limit", [{"num_connections": 0}, {"idle_s": 0}])
def test_limits_of_connections_must_be_positive(limit: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        make_server(None, **limit)  # type: ignore[arg-type]
