"""The answer mask is exact at the token boundary, whatever the texts are."""

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
from tests.imports.making_json import END, TURN, byte_level

from trilith.evolution.answers import AnswerRows, Marks, encode_instructions, pack_instructions
from trilith.evolution.instructions import Instruction, Turn
from trilith.tokens import (
    JsonMarks,
    Tokenizer,
    TokenizerConfig,
    join_marks,
    train_tokenizer,
)

MARKS = Marks(bos=1, user=4, assistant=5, end=6, pad=3)
Encode = Callable[..., AnswerRows]


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


@pytest.fixture(scope="module", params=["ours", "tokenizer.json"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Ours, with pieces that span spaces and letters, or byte-level BPE without most marks."""
    if request.param == "tokenizer.json":
        given = JsonMarks(bos=None, eos=290, pad=None, unk=None, vocab_size=300)
        return Tokenizer(join_marks(json.loads(byte_level().to_str()), given))
    rng = random.Random(3)
    words = [
        "colour",
        "of",
        "  rain",
        "\n\train",
        *("".join(rng.sample("abcdefg", 4)) for _ in "x" * 99),
    ]
    texts = [" ".join(rng.choices(words, k=20)) for _ in range(200)]
    return train_tokenizer(texts, TokenizerConfig(420, 1.0, 8, (), 10_000_000, 1))


def random_instruction(rng: random.Random) -> Instruction:
    turns = [Turn(random_words(rng), random_words(rng)) for _ in range(rng.randrange(1, 4))]
    return Instruction(turns[-1].prompt, turns[-1].response, "x", tuple(turns[:-1]))


def random_words(rng: random.Random) -> str:
    words = [
        "",
        " ",
        "  rain",
        "colour",
        " of",
        "\n",
        "e\u0301",
        "\u65e5\u672c",
        "\U0001f9d1\u200d",
    ]
    words += ["<|end|>", "</s>", "\u2581", "\0", "7 ", "\t", END, TURN, "<tool_call>"]
    return "".join(rng.choice(words) for _ in range(rng.randrange(6)))


@pytest.mark.parametrize("encode", [encode_instructions, pack_instructions])
def test_masked_in_tokens_decode_to_the_responses_and_nothing_else(
    tokenizer: Tokenizer, encode: Encode
) -> None:
    rng = random.Random(1)
    instructions = [random_instruction(rng) for _ in range(300)]
    marks = Marks.of(tokenizer)
    rows = encode(instructions, encoder=tokenizer, marks=marks, length=300)
    assert (rows.num_examples, rows.num_cut, rows.num_dropped) == (300, 0, 0)
    found = []
    for tokens, mask in zip(rows.tokens.tolist(), rows.answer_mask.tolist(), strict=True):
        assert tokens.count(marks.end) == sum(
            counts for token, counts in zip(tokens, mask, strict=True) if token == marks.end
        )
        runs = "".join("x" if counts else " " for counts in mask)
        start = 0
        for run in runs.split():
            start = runs.index(run, start)
            answer = tokens[start : start + len(run)]
            start += len(run)
            # One end mark in a run, at its end; before the run stands the mark of the assistant.
            assert answer.index(marks.end) == len(answer) - 1
            assert tokens[start - len(run) - 1] == marks.assistant
            found.append(tokenizer.decode(answer[:-1]))
    expected = [turn.response for i in instructions for turn in i.earlier]
    expected += [i.response for i in instructions]
    if tokenizer.is_imported:
        # The piece of this byte is a mark.
        expected = [text.replace("\0", "\ufffd") for text in expected]
    assert sorted(found) == sorted(expected)


def test_packed_rows_hold_every_example_once_in_a_segment_of_its_own() -> None:
    rng = random.Random(2)
    instructions = [random_instruction(rng) for _ in range(200)]
    arguments = {"encoder": Bytes(), "marks": MARKS, "length": 150}
    alone = encode_instructions(instructions, **arguments)
    packed = pack_instructions(instructions, **arguments)
    assert alone.segments is None and packed.segments is not None
    assert packed.num_examples == alone.num_examples
    assert (packed.num_cut, packed.num_dropped) == (alone.num_cut, alone.num_dropped)
    assert len(packed.tokens) < len(alone.tokens) / 2
    examples = []
    for tokens, mask, segments in zip(
        packed.tokens, packed.answer_mask, packed.segments, strict=True
    ):
        assert (np.diff(segments) >= 0).all()
        for segment in range(segments.max() + 1):
            own = segments == segment
            if tokens[own][0] == MARKS.pad:
                assert segment == segments.max() and not mask[own].any()
                continue
            examples.append((tokens[own].tolist(), mask[own].tolist()))
    lengths = [int((row != MARKS.pad).sum()) for row in alone.tokens]
    expected = [
        (row[:n].tolist(), mask[:n].tolist())
        for row, mask, n in zip(alone.tokens, alone.answer_mask, lengths, strict=True)
    ]
    assert sorted(examples) == sorted(expected)


def test_a_long_chat_loses_its_earliest_turns_and_then_the_beginning_of_a_prompt() -> None:
    turns = (Turn("01234567", "abc"), Turn("012345", "def"))
    chat = Instruction("89", "ghi", "x", turns)
    encode = Bytes().encode
    last = [4, *encode("89"), 5, *encode("ghi"), 6]
    middle = [4, *encode("012345"), 5, *encode("def"), 6]
    for length, kept in [
        (35, [1, 4, *encode("01234567"), 5, *encode("abc"), 6, *middle, *last]),
        (34, [1, *middle, *last]),
        (20, [1, *last]),
        (8, [1, 4, *encode("9"), 5, *encode("ghi"), 6]),
    ]:
        rows = encode_instructions([chat], encoder=Bytes(), marks=MARKS, length=length)
        assert [token for token in rows.tokens[0].tolist() if token != MARKS.pad] == kept
        assert rows.num_cut == (length < 35)
        answers = rows.tokens[0][rows.answer_mask[0]].tolist()
        assert answers.count(MARKS.end) == kept.count(MARKS.end)
    assert encode_instructions([chat], encoder=Bytes(), marks=MARKS, length=7).num_dropped == 1
