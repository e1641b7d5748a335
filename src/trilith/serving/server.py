"""The program around the application: socket, start, and an end that lets answers finish."""

import socket

import uvicorn
from starlette.applications import Starlette

_GRACE_S = 10
# Below what a process may usually open; each connection is a file.
_MAX_CONNECTIONS = 1000


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


def make_server(app: Starlette, *, grace_s: int = _GRACE_S) -> uvicorn.Server:
    """Make a server; `run(sockets=[...])` serves until Ctrl-C, SIGTERM or `should_exit`.

    Answers that run then get `grace_s` seconds to end.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=grace_s,
            server_header=False,
        )
    )
