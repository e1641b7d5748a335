"""Answer masks: instructions as rows of tokens in which only the answers count.

An example is `<bos>` and, for each of its turns, `<|user|> prompt <|assistant|> response <|end|>`;
padding fills the row. Prompts and responses are encoded apart, so the mask is exact at the token
boundary whatever the texts are.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np

from trilith.evolution.instructions import Instruction, Turn
from trilith.tokens import Tokenizer

# The marks beside prompt and response: bos, user, assistant.
_NUM_MARKS = 3


class Marks(NamedTuple):
    """Ids of the special tokens of a conversation."""

    bos: int
    user: int
    assistant: int
    end: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Return those of a tokenizer."""
        return cls(
            bos=tokenizer.bos_id,
            user=tokenizer.user_id,
            assistant=tokenizer.assistant_id,
            end=tokenizer.end_id,
            pad=tokenizer.pad_id,
        )


class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> list[int]: ...


class AnswerRows(NamedTuple):
    """Instructions ready for training or scoring."""

    tokens: np.ndarray  # int64 [N, length]
    answer_mask: np.ndarray  # bool [N, length], True on responses and their end marks
    num_cut: int  # examples that lost their beginning
    num_dropped: int  # examples whose last response alone is too long
    num_examples: int  # examples in the rows
    segments: np.ndarray | None = None  # int64 [N, length], the example of a token in its row


class _Example(NamedTuple):
    """Tokens of one example, and which of them count."""

    tokens: list[int]
    counted: list[bool]


class _Examples(NamedTuple):
    """All that fit a row, in their order, and how many were changed for it."""

    kept: list[_Example]
    num_cut: int
    num_dropped: int


def encode_instructions(
    instructions: Sequence[Instruction], *, encoder: Encoder, marks: Marks, length: int
) -> AnswerRows:
    """Encode instructions, one a row, padded to `length` tokens.

    An example that does not fit loses its earliest turns, then the beginning of the prompt that is
    left; if the last response and its marks alone do not fit, it is dropped. Both are counted.
    """
    examples = _encode_all(instructions, encoder, marks, length)
    rows = [[example] for example in examples.kept]
    return _as_arrays(rows, examples, pad=marks.pad, length=length)._replace(segments=None)


def pack_instructions(
    instructions: Sequence[Instruction], *, encoder: Encoder, marks: Marks, length: int
) -> AnswerRows:
    """Encode instructions as `encode_instructions` does, several to a row where they fit.

    The longest come first, each into the fullest row that has room for it (best fit decreasing).
    """
    examples = _encode_all(instructions, encoder, marks, length)
    rows: list[list[_Example]] = []
    rooms: list[tuple[int, int]] = []  # free tokens and number of every row, sorted
    for example in sorted(examples.kept, key=lambda example: -len(example.tokens)):
        size = len(example.tokens)
        place = bisect_left(rooms, (size, 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = length, len(rows)
            rows.append([])
        rows[number].append(example)
        insort(rooms, (room - size, number))
    return _as_arrays(rows, examples, pad=marks.pad, length=length)


def _encode_all(
    instructions: Sequence[Instruction], encoder: Encoder, marks: Marks, length: int
) -> _Examples:
    kept = []
    num_cut = num_dropped = 0
    for instruction in instructions:
        turns = [*instruction.earlier, Turn(instruction.prompt, instruction.response)]
        encoded = [_encode_turn(turn, encoder, marks) for turn in turns]
        size = 1 + sum(len(turn.tokens) for turn in encoded)
        while size > length and len(encoded) > 1:
            size -= len(encoded.pop(0).tokens)
        num_surplus = max(0, size - length)
        num_prompt = encoded[0].counted.index(True) - (_NUM_MARKS - 1)
        if num_surplus and num_surplus >= num_prompt:
            num_dropped += 1
            continue
        num_cut += num_surplus > 0 or len(encoded) < len(turns)
        tokens, counted = encoded[0]
        # The mark in front of the prompt stays.
        encoded[0] = _Example(tokens[:1] + tokens[1 + num_surplus :], counted[num_surplus:])
        kept.append(
            _Example(
                [marks.bos, *(token for turn in encoded for token in turn.tokens)],
                [False, *(count for turn in encoded for count in turn.counted)],
            )
        )
    return _Examples(kept, num_cut, num_dropped)


def _encode_turn(turn: Turn, encoder: Encoder, marks: Marks) -> _Example:
    head = [marks.user, *encoder.encode(turn.prompt), marks.assistant]
    response = [*encoder.encode(turn.response), marks.end]
    return _Example(head + response, [False] * len(head) + [True] * len(response))


def _as_arrays(
    rows: list[list[_Example]], examples: _Examples, *, pad: int, length: int
) -> AnswerRows:
    shape = len(rows), length
    tokens = np.full(shape, pad, dtype=np.int64)
    answer_mask = np.zeros(shape, dtype=bool)
    segments = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for place, example in enumerate(row):
            end = start + len(example.tokens)
            tokens[number, start:end] = example.tokens
            answer_mask[number, start:end] = example.counted
            segments[number, start:end] = place
            start = end
        # Padding is a segment too: nothing sees it, and it sees nothing.
        segments[number, start:] = len(row)
    num_cut, num_dropped = examples.num_cut, examples.num_dropped
    return AnswerRows(tokens, answer_mask, num_cut, num_dropped, len(examples.kept), segments)
