"""The tokenizer: text <-> ids, exact for every string, and text from ids that come one by one.

The reference for what an id means. SentencePiece finds the pieces; their bytes are ours.
"""

import codecs
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from trilith.files import require

# The frozen id table: the same ids in every tokenizer, checkpoint and packed file.
SPECIAL_IDS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<pad>": 3,
    "<|user|>": 4,
    "<|assistant|>": 5,
    "<|end|>": 6,
}

# SentencePiece writes a space as U+2581, so a real U+2581 in the text would come back as a space.
_META_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd".encode()


class Tokenizer:
    """Turns text into ids and back.

    `decode(encode(text)) == text` for every string that UTF-8 can hold. Special tokens are ids
    only: their names in a text are text. `decode` gives nothing for them, and U+FFFD for `<unk>`
    and for bytes that are not UTF-8 (`encode` makes neither, a model may).
    """

    def __init__(self, model: bytes, *, origin: str = "the tokenizer") -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{origin} is damaged (not a SentencePiece model: {error}); run tokenize"
            ) from error
        self.model_bytes = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._model.get_piece_size()
        self._check_special_ids(origin)
        self.unk_id = SPECIAL_IDS["<unk>"]
        self.bos_id = SPECIAL_IDS["<s>"]
        self.eos_id = SPECIAL_IDS["</s>"]
        self.pad_id = SPECIAL_IDS["<pad>"]
        self.user_id = SPECIAL_IDS["<|user|>"]
        self.assistant_id = SPECIAL_IDS["<|assistant|>"]
        self.end_id = SPECIAL_IDS["<|end|>"]
        self._bytes_of = [self._piece_bytes(token) for token in range(self.vocab_size)]
        self._meta_space_ids = [
            self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()
        ]

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load a `tokenizer.model` file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or another project's tokenizer.
        """
        path = require(path, made_by="tokenize")
        return cls(path.read_bytes(), origin=str(path))

    @classmethod
    def from_bytes(cls, model: bytes) -> "Tokenizer":
        """Make a tokenizer from the bytes of a `tokenizer.model`, as a packed file embeds them."""
        return cls(model)

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, without marks at its begin or end.

        Raises:
            ValueError: the text holds a lone surrogate, which is half a character.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 1) -> list[list[int]]:
        """Turn each of many texts into ids; the same as `encode` one by one, but faster."""
        parts = [_whole_characters(text).split(_META_SPACE) for text in texts]
        flat = [part for group in parts for part in group]
        encoded = iter(self._model.encode(flat, num_threads=num_threads))
        return [self._joined(next(encoded) for _ in group) for group in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Raises:
            ValueError: an id is not of this vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes of one id: empty for a special token, maybe part of a character."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"id {token} is not in 0..{self.vocab_size - 1}; "
                "the ids come from another tokenizer than this one"
            )
        return self._bytes_of[token]

    def piece(self, token: int) -> str:
        """Name of one id as SentencePiece has it, for tables and exports."""
        return self._model.id_to_piece(token)

    def _joined(self, parts: Iterable[list[int]]) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place:
                ids += self._meta_space_ids
            ids += part
        return ids

    def _piece_bytes(self, token: int) -> bytes:
        if self._model.is_unknown(token):
            return _REPLACEMENT
        if self._model.is_control(token):
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            found = _BYTE_PIECE.fullmatch(piece)
            assert found is not None
            return bytes([int(found.group(1), 16)])
        return piece.replace(_META_SPACE, " ").encode()

    def _check_special_ids(self, origin: str) -> None:
        for piece, expected in SPECIAL_IDS.items():
            found = self._model.piece_to_id(piece)
            if found != expected or self._model.id_to_piece(found) != piece:
                raise ValueError(
                    f"{origin} has {piece} at id {found}, expected {expected}: "
                    "it is not a tokenizer that tokenize made; run tokenize"
                )
        if self._model.piece_to_id("<0x00>") == SPECIAL_IDS["<unk>"]:
            raise ValueError(f"{origin} has no byte pieces, so not every text fits; run tokenize")


class StreamDecoder:
    """Text for ids that come one at a time; joined, it is what `decode` gives for all of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take one id and return the text that is certain now; empty inside a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """End the text: return U+FFFD for a character left unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)


def _whole_characters(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate {text[error.start]!r} at character {error.start}, "
            "which is half a character; decode its source properly, for instance with "
            "errors='replace'"
        ) from None
    return text
