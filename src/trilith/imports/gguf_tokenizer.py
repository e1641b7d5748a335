"""The tokenizer in a GGUF file: pieces, scores and types, as the SentencePiece model they are."""

from collections.abc import Callable
from typing import Any

from sentencepiece import sentencepiece_model_pb2

# Generated code, whose classes no type checker sees.
_proto: Any = sentencepiece_model_pb2

_KEY = "tokenizer.ggml."
_META_SPACE = "\u2581"
_USER_DEFINED = 4
# Of a document, a turn and a message: llama.cpp stops at each of them.
_ENDS = ("eos", "eot", "eom")


def stop_ids_of(field: Callable[[str, Any], Any]) -> list[int]:
    """Return the ids that the fields of a GGUF file name as ends of a text."""
    found = [field(f"{_KEY}{end}_token_id", None) for end in _ENDS]
    return [token for token in found if token is not None]


def sentencepiece_of(field: Callable[[str, Any], Any]) -> bytes:
    """Return the SentencePiece BPE model that encodes as llama.cpp does with these fields.

    Args:
        field: looks up a key of the file, with a value where it is missing.

    Raises:
        ValueError: the tokenizer is of another kind.
    """
    kind = field(f"{_KEY}model", "none")
    if kind != "llama":
        raise ValueError(
            f"has a tokenizer of kind {kind}, of which GGUF keeps too little; give the model's "
            "tokenizer.json, its tokenizer_config.json beside it, with --tokenizer"
        )
    pieces = field(f"{_KEY}tokens", [])
    model = _proto.ModelProto()
    spec, normalizer = model.trainer_spec, model.normalizer_spec
    spec.model_type = _proto.TrainerSpec.BPE
    spec.vocab_size = len(pieces)
    spec.byte_fallback = True
    spec.unk_id = field(f"{_KEY}unknown_token_id", 0)
    spec.bos_id = field(f"{_KEY}bos_token_id", 1)
    spec.eos_id = field(f"{_KEY}eos_token_id", 2)
    spec.pad_id = field(f"{_KEY}padding_token_id", -1)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = field(f"{_KEY}add_space_prefix", True)
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    scores, types = field(f"{_KEY}scores", []), field(f"{_KEY}token_type", [])
    if not len(pieces) == len(scores) == len(types):
        raise ValueError("has another number of pieces, scores and types; get another copy")
    for text, score, kind in zip(pieces, scores, types, strict=True):
        piece = model.pieces.add()
        piece.piece = text.replace(" ", _META_SPACE) if kind == _USER_DEFINED else text
        piece.score, piece.type = score, kind
    return model.SerializeToString(deterministic=True)
