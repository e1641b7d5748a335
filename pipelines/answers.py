"""Instructions of a split, from wherever they come, encoded with answer masks."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stage import Stage
from trilith.corpus import read_documents
from trilith.evolution import (
    AnswerRows,
    InstructionConfig,
    InstructionSet,
    Marks,
    SourceText,
    announce_licence,
    derive_instructions,
    encode_instructions,
    read_instructions,
)
from trilith.tokens import Tokenizer


class Answers(NamedTuple):
    """The rows of a split, and what was counted on the way to them."""

    rows: AnswerRows
    metrics: dict[str, int]
    licence: str | None  # None for what comes from the corpus, which has its own
    split: str

    def required(self) -> "Answers":
        """Return them, if there are any.

        Raises:
            ValueError: the split has none.
        """
        if not len(self.rows.tokens):
            raise ValueError(
                f"the {self.split} split gives no instruction of {self.rows.tokens.shape[1]} "
                "tokens; add documents with docstrings or paragraphs, or more instructions, or "
                "raise evolve.answer_length"
            )
        return self


def load_answers(
    stage: Stage,
    tokens_dir: Path,
    *,
    split: str,
    length: int,
    encode: Callable[..., AnswerRows] = encode_instructions,
) -> Answers:
    """Return the instructions of the split as rows of `length` tokens.

    Args:
        stage: names the source.
        tokens_dir: holds the tokenizer.
        split: train, validation or test.
        length: of a row.
        encode: `encode_instructions` or `pack_instructions`.

    Raises:
        FileNotFoundError: a file of instructions does not exist.
        ValueError: the instructions do not fit their form.
    """
    config = stage.section("instructions", InstructionConfig)
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    marks = Marks.of(tokenizer)
    if config.kind == "corpus":
        found = _from_corpus(stage.input("corpus"), split)
    else:
        announce_licence(config)
        found = read_instructions(config, split=split)
    rows = encode(found.instructions, encoder=tokenizer, marks=marks, length=length)
    metrics = {"answers/num_blank": found.num_blank, "answers/num_repeated": found.num_repeated}
    return Answers(rows, metrics, config.licence, split)


def _from_corpus(folder: Path, split: str) -> InstructionSet:
    documents = read_documents(folder / "documents.parquet").to_pylist()
    texts = [
        SourceText(d["text"], d["language"], d["path"]) for d in documents if d["split"] == split
    ]
    return InstructionSet(derive_instructions(texts), num_blank=0, num_repeated=0)
