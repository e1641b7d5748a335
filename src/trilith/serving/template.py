"""The chat template: the tokens of a conversation, laid out by the encoder of the training rows."""

from collections.abc import Sequence
from typing import NamedTuple

from trilith.evolution import Instruction, Marks, encode_instructions
from trilith.tokens import Tokenizer


class Exchange(NamedTuple):
    """A question and its answer."""

    prompt: str
    response: str


def chat_prompt(prompt: str, *, earlier: Sequence[Exchange], tokenizer: Tokenizer) -> list[int]:
    """Return the ids that an answer to `prompt` follows, the begin mark and all earlier turns.

    Raises:
        ValueError: a text holds a lone surrogate.
    """
    marks = Marks(
        bos=tokenizer.bos_id,
        user=tokenizer.user_id,
        assistant=tokenizer.assistant_id,
        end=tokenizer.end_id,
        pad=tokenizer.pad_id,
    )
    ids = [marks.bos]
    for exchange in earlier:
        question, answer = _laid_out(exchange, tokenizer=tokenizer, marks=marks)
        ids += question + answer
    return ids + _laid_out(Exchange(prompt, ""), tokenizer=tokenizer, marks=marks)[0]


def chat_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer: its end mark, and that of a document."""
    return tokenizer.end_id, tokenizer.eos_id


def _laid_out(
    exchange: Exchange, *, tokenizer: Tokenizer, marks: Marks
) -> tuple[list[int], list[int]]:
    """Tokens up to the answer, without the begin mark, and those of the answer with its end."""
    texts = [tokenizer.encode(text) for text in exchange]
    rows = encode_instructions(
        [Instruction(*exchange, source="")],
        encoder=tokenizer,
        marks=marks,
        length=sum(map(len, texts)) + len(marks),
    )
    assert len(rows.tokens) == 1 and not rows.num_cut
    tokens, is_answer = rows.tokens[0], rows.answer_mask[0]
    first = int(is_answer.argmax())
    # What follows the answer is padding.
    return tokens[1:first].tolist(), tokens[is_answer].tolist()
