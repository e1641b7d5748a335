"""The web application: OpenAI's routes over one model, within limits.

Of all modules this and `server` alone import a web framework (the extra `serve`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trilith.serving.asked import (
    Asked,
    RequestError,
    Served,
    parse_json,
    read_chat,
    read_completion,
)
from trilith.serving.batch import Batcher, Failed
from trilith.serving.pieces import Piece
from trilith.serving.replies import (
    LAST_EVENT,
    Kind,
    Reply,
    as_event,
    as_json,
    error_body,
    model_body,
)

log = logging.getLogger(__name__)

_READERS: dict[Kind, Callable[[Mapping[str, Any], Served], Asked]] = {
    "completion": read_completion,
    "chat": read_chat,
}


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        num_requests: answered or waiting at once; further ones get 503.
        body_bytes: of a request.
        time_s: from a request's body to the end of its answer; also for the body itself.
    """

    num_requests: int
    body_bytes: int
    time_s: float

    def __post_init__(self) -> None:
        for key in ("num_requests", "body_bytes", "time_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} must be positive")


def build_app(served: Served, *, batcher: Batcher, limits: Limits) -> Starlette:
    """Make the application; when it ends, it closes `batcher`."""
    desk = _Desk(served, batcher, limits)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        # The thread may be in the middle of a step, and the loop has answers to send.
        await asyncio.to_thread(batcher.close)

    return Starlette(
        routes=[
            Route("/v1/models", desk.list_models, methods=["GET"]),
            Route("/v1/models/{name}", desk.show_model, methods=["GET"]),
            Route("/v1/completions", _Endpoint(desk, "completion"), methods=["POST"]),
            Route("/v1/chat/completions", _Endpoint(desk, "chat"), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refuse_route, Exception: _hide_fault},
        lifespan=lifespan,
    )


class _Desk:
    """What all requests share."""

    def __init__(self, served: Served, batcher: Batcher, limits: Limits) -> None:
        self.served = served
        self.batcher = batcher
        self.limits = limits
        self.num_requests = 0
        self._created = int(time.time())

    async def list_models(self, _: Request) -> Response:
        entry = model_body(self.served, created=self._created)
        return _json_response({"object": "list", "data": [entry]})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name == self.served.name:
            return _json_response(model_body(self.served, created=self._created))
        message = f"the model {name} does not exist; this server has {self.served.name}"
        return _error_response(RequestError(message, status=404, code="model_not_found"))


class _Endpoint:
    """An ASGI application that answers one kind of request."""

    def __init__(self, desk: _Desk, kind: Kind) -> None:
        self._desk = desk
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        answer = _Answer(self._desk, self._kind, send)
        desk = self._desk
        if desk.num_requests >= desk.limits.num_requests:
            busy = "all places are taken; try again in a while"
            refused = RequestError(busy, status=503, code="overloaded")
            return await _error_response(refused)(scope, receive, send)
        desk.num_requests += 1
        try:
            await answer.give(request)
        except RequestError as error:
            await answer.refuse(error, scope, receive)
        except asyncio.CancelledError:
            # The server's time to end is over, and this task's: nothing awaits it.
            await answer.refuse(_closing(), scope, receive)
        except ClientDisconnect:
            log.info("a client left")
        finally:
            desk.num_requests -= 1


class _News(NamedTuple):
    """Pieces on their way from the model's thread; `ticket` gives the place in its line."""

    queue: asyncio.Queue[Piece | Failed]
    reply: Reply
    asked: Asked


class _Answer:
    """From a request to the last byte of its answer."""

    def __init__(self, desk: _Desk, kind: Kind, send: Send) -> None:
        self._desk = desk
        self._kind = kind
        self._send = send
        self.has_started = False

    async def give(self, request: Request) -> None:
        """Read, run and send, until the end, the time limit, or the client's leaving.

        Raises:
            RequestError: what the client is to be told.
            ClientDisconnect: nobody is left to be told.
        """
        limits = self._desk.limits
        try:
            body = await asyncio.wait_for(_read_body(request, limits.body_bytes), limits.time_s)
        except TimeoutError:
            raise _too_slow("the request's body", limits, status=408) from None
        read = _READERS[self._kind]
        # Tokenizing a long text must not hold the others up.
        asked = await asyncio.to_thread(lambda: read(parse_json(body), self._desk.served))
        work = asyncio.create_task(self._run(asked))
        leaving = asyncio.create_task(_until_gone(request))
        try:
            done, _ = await asyncio.wait(
                {work, leaving}, timeout=limits.time_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            await _stop(work, leaving)
        if work in done:
            return work.result()
        if leaving in done:
            raise ClientDisconnect
        raise _too_slow("the answer", limits, status=504)

    async def refuse(self, error: RequestError, scope: Scope, receive: Receive) -> None:
        """Answer by an error, or end the stream that was begun by one."""
        if not self.has_started:
            await _error_response(error)(scope, receive, self._send)
            return
        # The server closes on a client that does not even read that.
        await self._send({"type": "http.response.body", "body": as_event(error_body(error))})

    async def _run(self, asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | Failed] = asyncio.Queue()
        reply = Reply(self._kind, order=asked.order, model=self._desk.served.name)
        try:
            ticket = self._desk.batcher.submit(
                asked.order, lambda news: loop.call_soon_threadsafe(queue.put_nowait, news)
            )
        except RuntimeError:
            raise _closing() from None
        try:
            if asked.is_stream:
                await self._stream(_News(queue, reply, asked))
            else:
                await self._send_whole(_News(queue, reply, asked))
        finally:
            ticket.cancel()

    async def _send_whole(self, news: _News) -> None:
        texts = []
        while True:
            piece = _piece(await news.queue.get())
            texts.append(piece.text)
            if piece.finish_reason:
                break
        body = as_json(news.reply.whole("".join(texts), last=piece))
        await self._start("application/json")
        await self._send({"type": "http.response.body", "body": body})

    async def _stream(self, news: _News) -> None:
        # Until the first token an error can still be a status.
        piece = _piece(await news.queue.get())
        await self._start("text/event-stream")
        if opening := news.reply.opening():
            await self._send_part(as_event(opening))
        while True:
            if piece.text or piece.finish_reason:
                await self._send_part(as_event(news.reply.event(piece)))
            if piece.finish_reason:
                break
            piece = _piece(await news.queue.get())
        if news.asked.includes_usage:
            await self._send_part(as_event(news.reply.usage_event(piece)))
        await self._send({"type": "http.response.body", "body": LAST_EVENT})

    async def _start(self, media_type: str) -> None:
        self.has_started = True
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_part(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def _read_body(request: Request, most_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise RequestError(
                f"the body is longer than {most_bytes} bytes", status=413, code="body_too_large"
            )
    return bytes(body)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _piece(news: Piece | Failed) -> Piece:
    if isinstance(news, Failed):
        raise RequestError(news.reason, status=500)
    return news


def _closing() -> RequestError:
    return RequestError("the server is shutting down", status=503)


def _too_slow(what: str, limits: Limits, *, status: int) -> RequestError:
    return RequestError(
        f"{what} took longer than the limit of {limits.time_s:g} s", status=status, code="timeout"
    )


def _json_response(body: dict[str, Any], *, status: int = 200) -> Response:
    return Response(as_json(body), status_code=status, media_type="application/json")


def _error_response(error: RequestError) -> Response:
    response = _json_response(error_body(error), status=error.status)
    if error.code == "overloaded":
        response.headers["retry-after"] = "1"
    if error.code == "timeout":
        # OpenAI's clients would ask for the same again, twice.
        response.headers["x-should-retry"] = "false"
    if error.status in (408, 413):
        # What is left of the body is not read.
        response.headers["connection"] = "close"
    return response


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error_response(RequestError(message, status=error.status_code))


async def _hide_fault(_: Request, error: Exception) -> Response:
    # The web framework logs the error itself.
    return _error_response(
        RequestError("an error inside the server; its log says more", status=500)
    )
