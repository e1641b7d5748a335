"""Text in, text out: the engine with a tokenizer around it, and stop strings."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from trilith.runtime.continuation import GenerateConfig
from trilith.runtime.engine import Engine


class TextTokenizer(Protocol):
    """What the runtime needs of a tokenizer."""

    bos_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Turn text into ids without marks."""


class TextDecoder(Protocol):
    """Text for ids that come one at a time."""

    def push(self, token: int) -> str:
        """Take one id; return the text that is certain now."""

    def flush(self) -> str:
        """Return what is left."""


class StopCutter:
    """Ends a text that comes in pieces before the first of some stop strings.

    Attributes:
        has_cut: True once a stop string was found; nothing is to be pushed after that.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        if "" in stop_strings:
            raise ValueError("a stop string is empty; leave it out")
        self.has_cut = False
        self._stop_strings = tuple(stop_strings)
        self._held = ""

    def push(self, piece: str) -> str:
        """Take a piece; return the text that is certain now."""
        held = self._held + piece
        found = [at for stop in self._stop_strings if (at := held.find(stop)) >= 0]
        self.has_cut = bool(found)
        # Keep back what may be the beginning of a stop string.
        overlaps = (_overlap(held, stop) for stop in self._stop_strings)
        num_safe = min(found) if found else len(held) - max(overlaps, default=0)
        self._held = "" if found else held[num_safe:]
        return held[:num_safe]

    def flush(self) -> str:
        """End the text: return what was kept back."""
        held, self._held = self._held, ""
        return held


def stream_text(
    engine: Engine,
    *,
    prompt: str,
    tokenizer: TextTokenizer,
    decoder: TextDecoder,
    config: GenerateConfig,
) -> Iterator[str]:
    """Continue a text, piece by piece; the prompt is not part of the output.

    The prompt follows a begin mark, as every document does in training.

    Raises:
        ValueError: the tokenizer is not the model's, or the prompt does not fit.
    """
    if tokenizer.vocab_size != engine.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids and model {engine.config.name} "
            f"{engine.config.vocab_size}; use the model's own tokenizer"
        )
    tokens = engine.generate([tokenizer.bos_id, *tokenizer.encode(prompt)], config=config)
    return _decoded(tokens, decoder=decoder)


def until_stop_string(pieces: Iterable[str], *, stop_strings: Sequence[str]) -> Iterator[str]:
    """Hand on pieces of text up to the first stop string, even one spread over several pieces."""
    return _cut(pieces, cutter=StopCutter(stop_strings))


def _decoded(tokens: Iterable[int], *, decoder: TextDecoder) -> Iterator[str]:
    for token in tokens:
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.flush():
        yield rest


def _cut(pieces: Iterable[str], *, cutter: StopCutter) -> Iterator[str]:
    for piece in pieces:
        if text := cutter.push(piece):
            yield text
        if cutter.has_cut:
            return
    if rest := cutter.flush():
        yield rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
