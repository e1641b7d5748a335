"""The special tokens of Trilith, and what stands in for those that an imported tokenizer lacks."""

from collections.abc import Sequence

# The frozen id table of every tokenizer that `tokenize` trains. Imported ones keep their own ids.
SPECIAL_IDS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<pad>": 3,
    "<|user|>": 4,
    "<|assistant|>": 5,
    "<|end|>": 6,
}

# Imported tokenizers lack these marks; the pieces of control bytes, which no text needs, stand in.
STAND_INS = {"<pad>": 0, "<|user|>": 1, "<|assistant|>": 2, "<|end|>": 3}

# What text keeps of the characters that are these bytes in UTF-8, and of pieces that are unknown.
REPLACEMENT = "\ufffd"
_WITHOUT_STAND_INS = dict.fromkeys(STAND_INS.values(), REPLACEMENT)

# How SentencePiece, and what is made after it, writes a space.
META_SPACE = "\u2581"


def end_names(stop_ids: Sequence[int]) -> dict[str, int]:
    """Name ids that end a text: </s>, </s>2, </s>3 ..."""
    return {f"</s>{place if place > 1 else ''}": token for place, token in enumerate(stop_ids, 1)}


def without_stand_ins(text: str) -> str:
    """Return the text with U+FFFD for the characters whose pieces are marks."""
    return text.translate(_WITHOUT_STAND_INS)
