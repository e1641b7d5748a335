"""Instructions of a split, derived from its documents and encoded with answer masks."""

from pathlib import Path

from stage import Stage
from trilith.corpus import read_documents
from trilith.evolution import (
    AnswerRows,
    Marks,
    SourceText,
    derive_instructions,
    encode_instructions,
)
from trilith.tokens import Tokenizer


def load_answers(stage: Stage, tokens_dir: Path, *, split: str, length: int) -> AnswerRows:
    """Return the instructions of the split as rows of at most `length` tokens.

    Raises:
        ValueError: the split gives no instruction.
    """
    documents = read_documents(stage.input("corpus") / "documents.parquet").to_pylist()
    texts = [
        SourceText(d["text"], d["language"], d["path"]) for d in documents if d["split"] == split
    ]
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    marks = Marks(
        bos=tokenizer.bos_id,
        user=tokenizer.user_id,
        assistant=tokenizer.assistant_id,
        end=tokenizer.end_id,
        pad=tokenizer.pad_id,
    )
    rows = encode_instructions(
        derive_instructions(texts), encoder=tokenizer, marks=marks, length=length
    )
    if not len(rows.tokens):
        raise ValueError(
            f"the {split} split of the corpus gives no instruction of {length} tokens; "
            "add documents with docstrings or paragraphs, or raise evolve.answer_length"
        )
    return rows
