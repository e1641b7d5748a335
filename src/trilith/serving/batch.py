"""One thread owns the model: requests decode together on it, first come first run."""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trilith.runtime import Continuation, Engine, KeptCaches
from trilith.serving.pieces import Order, Piece, PieceMaker
from trilith.tokens import Tokenizer

log = logging.getLogger(__name__)


class Failed(NamedTuple):
    """The end of a continuation that broke off on our side."""

    reason: str


Listener = Callable[[Piece | Failed], object]


class Ticket:
    """A place in the line. What comes of it goes to the listener, in the thread of the model."""

    def __init__(self, order: Order, listener: Listener) -> None:
        self.order = order
        self.tell = listener
        self.is_over = False

    def cancel(self) -> None:
        """Give the place up: nothing more is told, and the cache goes after the current step."""
        self.is_over = True


class _Running(NamedTuple):
    """A request that has its place in the batch."""

    ticket: Ticket
    sequence: Continuation
    pieces: PieceMaker


class Batcher:
    """Runs continuations of one engine in one thread; up to `num_running` decode together.

    A round runs one part of each prompt that is not done, and then one step that adds a token to
    every other sequence. Requests come in between rounds and go as soon as they end. Tokens, and
    so texts, are those that each request would get alone. A request holds a KV cache from its
    admission on. Its prompt begins with what is `kept` of earlier ones.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        num_running: int,
        kept: KeptCaches | None = None,
    ) -> None:
        if num_running < 1:
            raise ValueError(f"{num_running} requests at once: at least 1 must run")
        self.engine = engine
        self.tokenizer = tokenizer
        self._num_running = num_running
        self._kept = kept
        self._waiting: list[Ticket] = []
        self._running: list[_Running] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="model")
        self._thread.start()

    def submit(self, order: Order, listener: Listener) -> Ticket:
        """Queue an order; the listener gets its pieces, or what went wrong, once each.

        Raises:
            RuntimeError: this was closed.
        """
        ticket = Ticket(order, listener)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the model was closed")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """End the thread after its current round; whoever still waits is told."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            self._run_parts()
            self._step()
        for ticket in [*(one.ticket for one in self._running), *self._waiting]:
            _tell(ticket, Failed("the server is shutting down"))
        self._running.clear()
        self._waiting.clear()

    def _admit(self) -> bool:
        """Let go of who is over and wait for work; False once this was closed."""
        self._running = [one for one in self._running if not one.ticket.is_over]
        with self._changed:
            while not (self._running or self._waiting or self._is_closed):
                self._changed.wait()
            if self._is_closed:
                return False
            self._waiting = [ticket for ticket in self._waiting if not ticket.is_over]
            num_free = self._num_running - len(self._running)
            admitted, self._waiting = self._waiting[:num_free], self._waiting[num_free:]
        for ticket in admitted:
            try:
                self._running.append(self._begin(ticket.order, ticket))
            except Exception as error:
                _fail(ticket, error)
        return True

    def _begin(self, order: Order, ticket: Ticket) -> _Running:
        sequence = Continuation(
            self.engine, order.prompt_ids, config=order.generation, kept=self._kept
        )
        return _Running(ticket, sequence, PieceMaker(order, self.tokenizer))

    def _run_parts(self) -> None:
        for one in self._running:
            if one.sequence.next_B is not None or one.ticket.is_over:
                continue
            try:
                logits_BV = one.sequence.run_part()
            except Exception as error:
                _fail(one.ticket, error)
                continue
            if logits_BV is not None:
                _draw(one, logits_BV)

    def _step(self) -> None:
        """Add a token to all sequences whose prompt is done; if that fails, it does for all."""
        ready = [one for one in self._running if not one.ticket.is_over]
        tokens = [one.sequence.next_B for one in ready]
        batch = [one for one, next_B in zip(ready, tokens, strict=True) if next_B is not None]
        if not batch:
            return
        try:
            logits_BV = self.engine.decode_together(
                torch.cat([next_B for next_B in tokens if next_B is not None]),
                caches=[one.sequence.cache for one in batch],
            )
        except Exception as error:
            for one in batch:
                _fail(one.ticket, error)
            return
        for one, own_BV in zip(batch, logits_BV.split(1), strict=True):
            _draw(one, own_BV)


def _draw(one: _Running, logits_BV: Tensor) -> None:
    """Draw a token from a sequence's own logits and hand it to its listener."""
    try:
        piece = one.pieces.push(one.sequence.draw(logits_BV))
    except Exception as error:
        _fail(one.ticket, error)
        return
    _tell(one.ticket, piece)
    # Never set back: the client may have cancelled while the token was drawn.
    if piece.finish_reason:
        one.ticket.is_over = True


def _fail(ticket: Ticket, error: Exception) -> None:
    """End a request that broke off on our side; the others go on."""
    log.error("a request failed", exc_info=error)
    _tell(ticket, Failed(f"{type(error).__name__} inside the server; its log says more"))
    ticket.is_over = True


def _tell(ticket: Ticket, news: Piece | Failed) -> None:
    if ticket.is_over:
        return
    try:
        ticket.tell(news)
    except RuntimeError as error:
        # An event loop that was closed, after a second Ctrl-C.
        log.warning("nobody listens to a request any more: %s", error)
        ticket.cancel()
