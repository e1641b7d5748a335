"""The SentencePiece model of a packed file as the table that other formats keep."""

from dataclasses import dataclass
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from trilith.tokens import Tokenizer

# Generated code, whose classes no type checker sees.
_proto: Any = sentencepiece_model_pb2

META_SPACE = "\u2581"
# Numbers of SentencePiece's protocol; GGUF has the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class PiecesTable:
    """Pieces by id with scores and types, the marks, and whether a space goes before the text.

    `stop_ids` end a text; `pad_id` is None where the tokenizer has no piece for padding.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    unk_id: int
    bos_id: int
    stop_ids: list[int]
    pad_id: int | None
    adds_space: bool


def read_pieces_table(model: bytes, *, target: str) -> PiecesTable:
    """Read a SentencePiece model.

    Raises:
        ValueError: `target` would give other ids for the same text.
    """
    proto = _proto.ModelProto.FromString(model)
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
    tokenizer = Tokenizer.from_bytes(model)
    stop_ids = [tokenizer.eos_id]
    if not tokenizer.is_imported:
        stop_ids.append(tokenizer.end_id)
    return PiecesTable(
        pieces=[piece.piece for piece in proto.pieces],
        scores=[piece.score for piece in proto.pieces],
        types=[piece.type for piece in proto.pieces],
        unk_id=tokenizer.unk_id,
        bos_id=tokenizer.bos_id,
        stop_ids=stop_ids,
        # Imported tokenizers have a byte's piece stand in for padding: not to be told to others.
        pad_id=None if tokenizer.is_imported else tokenizer.pad_id,
        adds_space=normalizer.add_dummy_prefix,
    )
