"""The program around the application: socket, connections within limits, and an end that lets
answers finish."""

import asyncio
import logging
import socket
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

_GRACE_S = 10
_FAREWELL_S = 1.0
# Below what a process may usually open; each connection is a file.
_MAX_CONNECTIONS = 1000
_IDLE_S = 30
# What the system keeps of an answer: by itself it takes megabytes, and so thousands of tokens,
# before anybody notices that the client does not read.
_SEND_BYTES = 2**16


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 takes a free one.

    Raises:
        OSError: the address is not ours, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host} port {port}: {error}; choose another") from None


def make_server(
    app: Starlette,
    *,
    num_connections: int = _MAX_CONNECTIONS,
    idle_s: int = _IDLE_S,
    grace_s: int = _GRACE_S,
    farewell_s: float = _FAREWELL_S,
) -> uvicorn.Server:
    """Make a server; `run(sockets=[...])` serves until Ctrl-C, SIGTERM or `should_exit`.

    Args:
        app: what answers.
        num_connections: open at once; a request on the last of them gets 503, and further ones are
            closed.
        idle_s: seconds in which a client must have sent the header of a request, or gone on
            reading an answer; then its connection is closed.
        grace_s: seconds that answers have to end, once the server is told to.
        farewell_s: seconds that clients have after them, to read what is left and why it ends.

    Raises:
        ValueError: a limit is not positive.
    """
    for key, value in (("num_connections", num_connections), ("idle_s", idle_s)):
        if value < 1:
            raise ValueError(f"{key}={value} must be positive")
    return _Server(
        farewell_s,
        uvicorn.Config(
            app,
            http=_Connection,
            # An upgraded connection would be out of reach of the limits.
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="on",
            limit_concurrency=num_connections,
            timeout_keep_alive=idle_s,
            timeout_graceful_shutdown=grace_s,
            server_header=False,
        ),
    )


class _Server(uvicorn.Server):
    """Lets clients read the end of answers it broke off, and closes on those that do not."""

    def __init__(self, farewell_s: float, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._farewell_s = farewell_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # An answer that was broken off is not at its client yet: uvicorn does not wait for it.
        left = self.server_state
        with suppress(TimeoutError):
            async with asyncio.timeout(self._farewell_s):
                while (left.tasks or left.connections) and not self.force_exit:
                    await asyncio.sleep(0.01)
        for connection in list(left.connections):
            connection.transport.abort()
        # What `abort` does, it does in the next turn of the loop.
        await asyncio.sleep(0)


class _Connection(H11Protocol):
    """HTTP/1.1 that is closed when its client lets everything wait for it.

    By itself, uvicorn waits for ever for the first header, for the rest of any header, and for a
    client that does not read.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        assert self.limit_concurrency is not None
        if len(self.connections) > self.limit_concurrency:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watch()

    def _watch(self) -> None:
        """Let time run while it is the client's turn; a byte now and then does not stop it."""
        is_between = self.cycle is None or self.cycle.response_complete
        if not (is_between or self.flow.write_paused):
            self._stop_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        log.info("closed a connection whose client neither sent nor read for too long")
        self.transport.abort()
