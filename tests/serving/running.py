"""A real server on a free port, and plain requests to it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from trilith.runtime import Engine, KeptCaches
from trilith.serving import Batcher
from trilith.serving.app import Limits, build_app
from trilith.serving.asked import Served
from trilith.serving.server import make_server, open_socket
from trilith.tokens import Tokenizer

# Far beyond any wait of a busy machine.
PATIENCE_S = 120
LIMITS = Limits(num_requests=100, body_bytes=100_000, time_s=PATIENCE_S)
CONTEXT = 15_000


class Answer(NamedTuple):
    """Status, headers and body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON of a stream's events; the mark at its end must be there."""
        *events, last, nothing = self.body.split(b"\n\n")
        assert (last, nothing) == (b"data: [DONE]", b"")
        return [json.loads(event.removeprefix(b"data: ")) for event in events]


class Running(NamedTuple):
    """A server that runs."""

    server: Any
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def waits_for_reader(self) -> bool:
        """Whether what the system keeps of an answer is full."""
        connections = list(self.server.server_state.connections)
        return any(connection.flow.write_paused for connection in connections)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def send(self, path: str, body: Any) -> http.client.HTTPConnection:
        """Send a request and wait for nothing."""
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", f"/v1/{path}", data)
        return connection

    def post(self, path: str, body: Any) -> Answer:
        return receive(self.send(path, body))

    def get(self, path: str) -> Answer:
        connection = self.connect()
        connection.request("GET", f"/v1/{path}")
        return receive(connection)


def receive(connection: http.client.HTTPConnection) -> Answer:
    """Read a response to its end."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    answer = Answer(response.status, headers, response.read())
    connection.close()
    return answer


@contextmanager
def running(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    limits: Limits = LIMITS,
    num_running: int = 4,
    context: int = CONTEXT,
    kept: KeptCaches | None = None,
    num_connections: int = 1000,
    idle_s: int = PATIENCE_S,
    farewell_s: float = PATIENCE_S,
) -> Iterator[Running]:
    """Serve a model named toy; the end is that of a server that is told to stop."""
    batcher = Batcher(engine, tokenizer, num_running=num_running, kept=kept)
    served = Served(engine, tokenizer, "toy", context)
    with open_socket("127.0.0.1", 0) as listener:
        server = make_server(
            build_app(served, batcher=batcher, limits=limits),
            num_connections=num_connections,
            idle_s=idle_s,
            grace_s=1,
            farewell_s=farewell_s,
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.01)
            yield Running(server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            batcher.close()
    assert not thread.is_alive()
