"""llama2.c's `tokenizer.bin`: pieces and scores, turned into the SentencePiece model they are."""

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2

# Generated code, whose classes no type checker sees.
_proto: Any = sentencepiece_model_pb2

_META_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_CONTROL = {1: "<s>", 2: "</s>"}


class _Piece(NamedTuple):
    text: bytes
    score: float


def find_tokenizer(weights: Path, *, vocab_size: int, given: Path | None) -> bytes:
    """Return the SentencePiece model of a weight file, from `given` or from beside it.

    Beside it are `*.bin` of the right size, which the format's own programs read, before `*.model`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several could be meant, or the file is no tokenizer.
    """
    if given is not None:
        return _content(given)
    beside = [
        path
        for path in sorted(weights.parent.glob("*.bin"))
        if path != weights and _num_pieces(path) == vocab_size
    ] or sorted(weights.parent.glob("*.model"))
    if not beside:
        raise FileNotFoundError(
            f"no tokenizer lies beside {weights}; give its tokenizer.bin or SentencePiece model "
            "with --tokenizer"
        )
    if len(beside) > 1:
        names = ", ".join(path.name for path in beside)
        raise ValueError(f"{weights} may belong to any of {names}; choose one with --tokenizer")
    return _content(beside[0])


def read_pieces(content: bytes) -> list[_Piece] | None:
    """Return the pieces of a tokenizer.bin: a maximum length, then (score, length, bytes) each.

    None if the content is not of this form to its last byte.
    """
    pieces = []
    place = 4
    while place < len(content):
        if place + 8 > len(content):
            return None
        score, length = struct.unpack_from("<fi", content, place)
        place += 8
        if length < 0 or place + length > len(content):
            return None
        pieces.append(_Piece(content[place : place + length], score))
        place += length
    return pieces or None


def to_sentencepiece(pieces: list[_Piece]) -> bytes:
    """Return the SentencePiece BPE model with these pieces, which encodes as run.c does.

    run.c puts a space before the text, keeps all spaces and spells unknown characters in bytes.

    Raises:
        ValueError: a piece is not UTF-8.
    """
    model = _proto.ModelProto()
    spec, normalizer = model.trainer_spec, model.normalizer_spec
    spec.model_type = _proto.TrainerSpec.BPE
    spec.vocab_size = len(pieces)
    spec.byte_fallback = True
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    for token, piece in enumerate(pieces):
        added = model.pieces.add()
        added.piece, added.type = _named(token, piece)
        added.score = piece.score
    return model.SerializeToString(deterministic=True)


def _named(token: int, piece: _Piece) -> tuple[str, int]:
    kinds = _proto.ModelProto.SentencePiece
    text = piece.text.decode("utf-8").replace(" ", _META_SPACE)
    if token == 0:
        return "<unk>", kinds.UNKNOWN
    # The exporter wraps both marks into line breaks.
    if token in _CONTROL:
        return _CONTROL[token], kinds.CONTROL
    return text, kinds.BYTE if _BYTE_PIECE.fullmatch(text) else kinds.NORMAL


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    pieces = read_pieces(content)
    if pieces is None:
        return content
    try:
        return to_sentencepiece(pieces)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no tokenizer.bin of llama2.c (a piece is not UTF-8: {error}); give another"
        ) from None


def _num_pieces(path: Path) -> int | None:
    # Weights are no tokenizer, and are not read as one: a vocabulary has at most some megabytes.
    if path.stat().st_size > 1 << 26:
        return None
    pieces = read_pieces(path.read_bytes())
    return len(pieces) if pieces else None
