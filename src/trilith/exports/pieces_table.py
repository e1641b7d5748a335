"""The tokenizer of a packed file as other formats keep it: its marks, its table of pieces."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2

from trilith.tokens import Tokenizer

# Generated code, whose classes no type checker sees.
_proto: Any = sentencepiece_model_pb2

META_SPACE = "\u2581"
# Numbers of SentencePiece's protocol; GGUF has the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class ExportedMarks(NamedTuple):
    """Ids to tell to others: `stop_ids` end a text; None where something else stands in."""

    bos_id: int | None
    stop_ids: list[int]
    pad_id: int | None


@dataclass(frozen=True)
class PiecesTable:
    """Pieces by id with scores and types, and whether a space goes before the text."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    unk_id: int
    bos_id: int
    adds_space: bool


def exported_marks(tokenizer: Tokenizer) -> ExportedMarks:
    """Return the marks of a tokenizer that are its own."""
    ids = {
        name: token
        for name, token in tokenizer.special_ids.items()
        if name not in tokenizer.stand_ins
    }
    stop_ids = list(tokenizer.stop_ids)
    if "<|end|>" in ids:
        stop_ids.append(ids["<|end|>"])
    return ExportedMarks(ids.get("<s>"), stop_ids, ids.get("<pad>"))


def read_pieces_table(tokenizer: Tokenizer, *, target: str) -> PiecesTable:
    """Read the SentencePiece model of a tokenizer.

    Raises:
        ValueError: it is another kind, or `target` would give other ids for the same text.
    """
    if tokenizer.tokenizer_json is not None:
        raise ValueError(
            f"the tokenizer is a tokenizer.json, and {target} is written with the pieces and "
            "scores of a SentencePiece model; export this model to huggingface"
        )
    proto = _proto.ModelProto.FromString(tokenizer.project_file)
    normalizer = proto.normalizer_spec
    problem = None
    if proto.trainer_spec.model_type != _proto.TrainerSpec.BPE:
        problem = "is no BPE model"
    elif normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        problem = f"changes the text first (rule {normalizer.name}, squeezed spaces)"
    if problem:
        raise ValueError(
            f"the tokenizer {problem}, and in {target} the same text would get other ids; "
            "this model cannot be exported"
        )
    assert tokenizer.unk_id is not None
    return PiecesTable(
        pieces=[piece.piece for piece in proto.pieces],
        scores=[piece.score for piece in proto.pieces],
        types=[piece.type for piece in proto.pieces],
        unk_id=tokenizer.unk_id,
        bos_id=tokenizer.bos_id,
        adds_space=normalizer.add_dummy_prefix,
    )
