"""From an order to its text: a piece a token, with the reason for its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from trilith.runtime import Engine, GenerateConfig, KeptCaches, StopCutter
from trilith.tokens import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Order:
    """A continuation that is asked for."""

    prompt_ids: tuple[int, ...]
    generation: GenerateConfig
    stop_strings: tuple[str, ...] = ()


class Piece(NamedTuple):
    """Text that is certain now, and how many tokens were drawn up to it; the last one says why."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None


class PieceMaker:
    """Makes the tokens of one order into pieces of text; the last one has a finish reason."""

    def __init__(self, order: Order, tokenizer: Tokenizer) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._cutter = StopCutter(order.stop_strings)
        self._most = order.generation.max_new_tokens
        self._num_tokens = 0

    def push(self, token: int | None) -> Piece:
        """Take a token, or None where a stop id ended the order instead."""
        text = ""
        if token is not None:
            self._num_tokens += 1
            text = self._cutter.push(self._decoder.push(token))
        is_last = token is None or self._num_tokens == self._most
        if not is_last and not self._cutter.has_cut:
            return Piece(text, self._num_tokens, None)
        if not self._cutter.has_cut:
            text += self._cutter.push(self._decoder.flush()) + self._cutter.flush()
        is_stopped = self._cutter.has_cut or token is None
        return Piece(text, self._num_tokens, "stop" if is_stopped else "length")


def run_order(
    order: Order, *, engine: Engine, tokenizer: Tokenizer, kept: KeptCaches | None = None
) -> Iterator[Piece]:
    """Run an order by itself: a piece for every token, empty ones too, up to the finish reason.

    Nothing is checked or allocated before the first piece. Caches of earlier prompts may be `kept`.
    """
    maker = PieceMaker(order, tokenizer)
    tokens = engine.generate(order.prompt_ids, config=order.generation, kept=kept)
    for token in chain(tokens, [None]):
        yield (piece := maker.push(token))
        if piece.finish_reason:
            return
