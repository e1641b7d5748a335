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
_STAND_INS = {"<pad>": 0, "<|user|>": 1, "<|assistant|>": 2, "<|end|>": 3}

# SentencePiece writes a space as U+2581, so a real U+2581 in the text would come back as a space.
_META_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd".encode()
_WITHOUT_STAND_INS = dict.fromkeys(_STAND_INS.values(), "\ufffd")


class Tokenizer:
    """Turns text into ids and back.

    `decode(encode(text)) == text` for every string that UTF-8 can hold. Special tokens are ids
    only: their names in a text are text. `decode` gives nothing for them, and U+FFFD for `<unk>`
    and for bytes that are not UTF-8 (`encode` makes neither, a model may).

    An imported tokenizer gives the ids of its own project, so it is exact as far as that one is:
    it may squeeze spaces, U+2581 comes back as a space, and U+0000 to U+0003 as U+FFFD, since
    the pieces of these four stand in for the marks that it lacks.

    Attributes:
        special_ids: id of each special token; SPECIAL_IDS but for imported tokenizers.
        is_imported: True for a tokenizer that `tokenize` did not train.
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
        self._check_byte_pieces(origin)
        self.is_imported = not self._has_frozen_ids()
        self.special_ids = self._own_ids(origin) if self.is_imported else dict(SPECIAL_IDS)
        self.unk_id = self.special_ids["<unk>"]
        self.bos_id = self.special_ids["<s>"]
        self.eos_id = self.special_ids["</s>"]
        self.pad_id = self.special_ids["<pad>"]
        self.user_id = self.special_ids["<|user|>"]
        self.assistant_id = self.special_ids["<|assistant|>"]
        self.end_id = self.special_ids["<|end|>"]
        # Llama's tokenizers put a space before the text.
        self._adds_space = self._model.encode("a", out_type=str)[0].startswith(_META_SPACE)
        self._bytes_of = [self._piece_bytes(token) for token in range(self.vocab_size)]
        self._meta_space_ids = [
            self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()
        ]

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load a `tokenizer.model` file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or cannot spell every text.
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
        parts = [self._parts(_whole_characters(text)) for text in texts]
        flat = [part for group in parts for part in group]
        encoded = iter(self._model.encode(flat, num_threads=num_threads))
        return [self._joined(next(encoded) for _ in group) for group in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Raises:
            ValueError: an id is not of this vocabulary.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._adds_space else text

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

    def _parts(self, text: str) -> list[str]:
        if self.is_imported:
            return [text.translate(_WITHOUT_STAND_INS)]
        return text.split(_META_SPACE)

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
        if self._model.is_control(token) or token in self.special_ids.values():
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            found = _BYTE_PIECE.fullmatch(piece)
            assert found is not None
            return bytes([int(found.group(1), 16)])
        return piece.replace(_META_SPACE, " ").encode()

    def _has_frozen_ids(self) -> bool:
        pieces = [self._model.id_to_piece(token) for token in SPECIAL_IDS.values()]
        return pieces == list(SPECIAL_IDS)

    def _own_ids(self, origin: str) -> dict[str, int]:
        """Ids of an imported tokenizer: its own marks, and bytes that stand in for the others."""
        model = self._model
        own = {
            "<unk>": model.unk_id(),
            "<s>": model.bos_id(),
            "</s>": model.eos_id(),
        }
        missing = [name for name, token in own.items() if token < 0]
        if missing:
            raise ValueError(
                f"{origin} has no {' and no '.join(missing)}, which begin and end documents; "
                "use a tokenizer that has them"
            )
        for name, byte in _STAND_INS.items():
            own[name] = model.piece_to_id(f"<0x{byte:02X}>")
        return own

    def _check_byte_pieces(self, origin: str) -> None:
        found = self._model.piece_to_id("<0x00>")
        if not self._model.is_byte(found):
            raise ValueError(
                f"{origin} has no byte pieces, so not every text fits; run tokenize, or import a "
                "tokenizer with byte fallback"
            )


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
