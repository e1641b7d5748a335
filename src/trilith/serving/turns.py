"""One thread owns the model: requests take turns on it, a token each, first come first run."""

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from trilith.runtime import Engine
from trilith.serving.pieces import Order, Piece, run_order
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
        """Give the place up: at most one more token is drawn, and the cache is let go."""
        self.is_over = True


class TurnTaker:
    """Runs continuations of one engine in one thread; up to `num_running` share it.

    A prompt runs as a whole in its first turn, so the others wait for it. Tokens, and so texts, are
    those that each request would get alone. A request holds a KV cache from its first turn on.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, num_running: int) -> None:
        if num_running < 1:
            raise ValueError(f"{num_running} requests at once: at least 1 must run")
        self.engine = engine
        self.tokenizer = tokenizer
        self._num_running = num_running
        self._line: list[tuple[Ticket, Iterator[Piece]]] = []
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
            self._line.append(
                (ticket, run_order(order, engine=self.engine, tokenizer=self.tokenizer))
            )
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """End the thread after its current token; whoever still waits is told."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while turns := self._next_turns():
            for ticket, pieces in turns:
                if not ticket.is_over:
                    self._take_turn(ticket, pieces)
            # A finished request must not keep its cache while the thread waits for others.
            del turns, ticket, pieces
        for ticket, _ in self._line:
            if not ticket.is_over:
                _tell(ticket, Failed("the server is shutting down"))
        self._line.clear()

    def _next_turns(self) -> list[tuple[Ticket, Iterator[Piece]]]:
        """Wait until there is work; return the turns of a round, none once this was closed."""
        with self._changed:
            self._line = [place for place in self._line if not place[0].is_over]
            while not self._line and not self._is_closed:
                self._changed.wait()
            return [] if self._is_closed else list(islice(self._line, self._num_running))

    def _take_turn(self, ticket: Ticket, pieces: Iterator[Piece]) -> None:
        try:
            piece: Piece | Failed = next(pieces)
        except Exception as error:
            # One request must not end the others.
            log.exception("a request failed")
            piece = Failed(f"{type(error).__name__} inside the server; its log says more")
        _tell(ticket, piece)
        # Never set back: the client may have cancelled while the token was drawn.
        if isinstance(piece, Failed) or piece.finish_reason:
            ticket.is_over = True


def _tell(ticket: Ticket, news: Piece | Failed) -> None:
    try:
        ticket.tell(news)
    except RuntimeError as error:
        # An event loop that was closed, after a second Ctrl-C.
        log.warning("nobody listens to a request any more: %s", error)
        ticket.cancel()
