"""From an order to its text: a piece a token, with the reason for its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trilith.runtime import Engine, GenerateConfig, StopCutter
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


def run_order(order: Order, *, engine: Engine, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Run an order: a piece for every token, empty ones too; the last has a finish reason.

    Nothing is checked or allocated before the first piece.
    """
    decoder = StreamDecoder(tokenizer)
    cutter = StopCutter(order.stop_strings)
    num_tokens, most = 0, order.generation.max_new_tokens
    for token in engine.generate(order.prompt_ids, config=order.generation):
        num_tokens += 1
        text = cutter.push(decoder.push(token))
        if cutter.has_cut or num_tokens == most:
            break
        yield Piece(text, num_tokens, None)
    else:
        # A stop id ended it.
        text, most = "", -1
    if not cutter.has_cut:
        text += cutter.push(decoder.flush()) + cutter.flush()
    is_stopped = cutter.has_cut or num_tokens != most
    yield Piece(text, num_tokens, "stop" if is_stopped else "length")
