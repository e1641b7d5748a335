"""Answer masks: instructions as rows of tokens in which only the answers count.

A row is `<bos> <|user|> prompt <|assistant|> response <|end|>` and padding. Prompt and response are
encoded apart, so the mask is exact at the token boundary whatever the texts are.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from trilith.evolution.instructions import Instruction


class Marks(NamedTuple):
    """Ids of the special tokens of a conversation."""

    bos: int
    user: int
    assistant: int
    end: int
    pad: int


class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> list[int]: ...


class AnswerRows(NamedTuple):
    """Instructions ready for training or scoring."""

    tokens: np.ndarray  # int64 [N, length]
    answer_mask: np.ndarray  # bool [N, length], True on the response and its end mark
    num_cut: int  # prompts shortened from their beginning
    num_dropped: int  # examples whose response alone is too long


def encode_instructions(
    instructions: Sequence[Instruction], *, encoder: Encoder, marks: Marks, length: int
) -> AnswerRows:
    """Encode instructions, one a row, padded to `length` tokens.

    A prompt that does not fit loses its beginning; an example whose response and marks alone do
    not fit is dropped. Both are counted.
    """
    rows, masks = [], []
    num_cut = num_dropped = 0
    for instruction in instructions:
        prompt = encoder.encode(instruction.prompt)
        response = [*encoder.encode(instruction.response), marks.end]
        room = length - len(response) - 3
        if room < 1:
            num_dropped += 1
            continue
        num_cut += len(prompt) > room
        head = [marks.bos, marks.user, *prompt[-room:], marks.assistant]
        padding = length - len(head) - len(response)
        rows.append([*head, *response, *[marks.pad] * padding])
        masks.append([*[False] * len(head), *[True] * len(response), *[False] * padding])
    return AnswerRows(
        np.array(rows, dtype=np.int64).reshape(-1, length),
        np.array(masks, dtype=bool).reshape(-1, length),
        num_cut,
        num_dropped,
    )
