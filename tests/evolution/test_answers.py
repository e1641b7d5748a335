"""The answer mask is exact at the token boundary, whatever the texts are."""

import random

import numpy as np

from trilith.evolution.answers import Marks, encode_instructions
from trilith.evolution.instructions import Instruction

MARKS = Marks(bos=1, user=4, assistant=5, end=6, pad=3)


class Bytes:
    """A tokenizer of which everything is known: one id a byte."""

    def encode(self, text: str) -> list[int]:
        return [byte + 10 for byte in text.encode()]


def random_text(rng: random.Random) -> str:
    alphabet = "ab \n\t\u00e9\u65e5\U0001f600<|assistant|>"
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))


def test_the_mask_covers_the_response_and_its_end_mark_alone() -> None:
    rng = random.Random(0)
    instructions = [Instruction(random_text(rng), random_text(rng), "x") for _ in range(300)]
    rows = encode_instructions(instructions, encoder=Bytes(), marks=MARKS, length=120)
    assert (len(rows.tokens), rows.num_cut, rows.num_dropped) == (300, 0, 0)
    for instruction, tokens, mask in zip(instructions, rows.tokens, rows.answer_mask, strict=True):
        assert tokens[mask].tolist() == [*Bytes().encode(instruction.response), MARKS.end]
        before = tokens[: mask.argmax()].tolist()
        assert before == [1, 4, *Bytes().encode(instruction.prompt), 5]
        assert (tokens[len(before) + mask.sum() :] == MARKS.pad).all()


def test_a_long_prompt_loses_its_beginning_and_a_long_response_its_example() -> None:
    instructions = [
        Instruction("0123456789", "ab", "x"),
        Instruction("0", "0123456789", "x"),
        Instruction("01", "ab", "x"),
    ]
    rows = encode_instructions(instructions, encoder=Bytes(), marks=MARKS, length=10)
    assert (len(rows.tokens), rows.num_cut, rows.num_dropped) == (2, 1, 1)
    kept = Bytes().encode("6789")
    assert rows.tokens[0].tolist() == [1, 4, *kept, 5, *Bytes().encode("ab"), 6]


def test_no_instruction_gives_no_row() -> None:
    rows = encode_instructions([], encoder=Bytes(), marks=MARKS, length=10)
    assert rows.tokens.shape == (0, 10)
    assert rows.answer_mask.dtype == np.bool_
