"""The chat template: the tokens of a conversation, laid out by the encoder of the training rows."""

from collections.abc import Sequence

from trilith.evolution import Instruction, Marks, Turn, encode_instructions
from trilith.tokens import Tokenizer


def chat_prompt(prompt: str, *, earlier: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
    """Return the ids that an answer to `prompt` follows, the begin mark and all earlier turns.

    Raises:
        ValueError: a text holds a lone surrogate.
    """
    marks = Marks.of(tokenizer)
    ids = [marks.bos]
    for exchange in earlier:
        question, answer = _laid_out(exchange, tokenizer=tokenizer, marks=marks)
        ids += question + answer
    return ids + _laid_out(Turn(prompt, ""), tokenizer=tokenizer, marks=marks)[0]


def chat_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer: its end mark, and those of a text."""
    return tokenizer.end_id, *tokenizer.stop_ids


def _laid_out(exchange: Turn, *, tokenizer: Tokenizer, marks: Marks) -> tuple[list[int], list[int]]:
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
