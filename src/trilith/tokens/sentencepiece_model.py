"""SentencePiece models: ours, with the frozen ids, and those of other projects."""

import re
from collections.abc import Iterable, Sequence

import sentencepiece

from trilith.tokens.marked_file import read_stop_ids, split_marks
from trilith.tokens.marks import (
    META_SPACE,
    REPLACEMENT,
    SPECIAL_IDS,
    STAND_INS,
    without_stand_ins,
)

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class SentencePieceModel:
    """What `Tokenizer` asks of a model; SentencePiece finds the pieces, their bytes are ours."""

    def __init__(self, content: bytes, *, origin: str) -> None:
        told, project_file = split_marks(content)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(project_file)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{origin} is damaged (not a SentencePiece model: {error}); run tokenize"
            ) from error
        self.vocab_size: int = self._model.get_piece_size()
        self._check_byte_pieces(origin)
        self.is_imported = not self._has_frozen_ids()
        self.special_ids = self._own_ids(origin) if self.is_imported else dict(SPECIAL_IDS)
        self.stand_ins = frozenset(STAND_INS) if self.is_imported else frozenset()
        self.stop_ids = read_stop_ids(told, eos=self.special_ids["</s>"], origin=origin)
        if max(self.stop_ids) >= self.vocab_size:
            raise ValueError(
                f"{origin} has no piece for an end mark of {self.stop_ids}; import it again"
            )
        # Llama's tokenizers put a space before the text.
        self.adds_space: bool = self._model.encode("a", out_type=str)[0].startswith(META_SPACE)
        self.bytes_of = [self._piece_bytes(token) for token in range(self.vocab_size)]
        # SentencePiece writes a space as U+2581, so a real one would come back as a space.
        self._meta_space_ids = [
            self._model.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()
        ]

    def encode_batch(self, texts: Sequence[str], *, num_threads: int) -> list[list[int]]:
        """Turn each text into ids."""
        parts = [self._parts(text) for text in texts]
        flat = [part for group in parts for part in group]
        encoded = iter(self._model.encode(flat, num_threads=num_threads))
        return [self._joined(next(encoded) for _ in group) for group in parts]

    def piece(self, token: int) -> str:
        """Return the name of an id."""
        return self._model.id_to_piece(token)

    def _parts(self, text: str) -> list[str]:
        return [without_stand_ins(text)] if self.is_imported else text.split(META_SPACE)

    def _joined(self, parts: Iterable[list[int]]) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place:
                ids += self._meta_space_ids
            ids += part
        return ids

    def _piece_bytes(self, token: int) -> bytes:
        if self._model.is_unknown(token):
            return REPLACEMENT.encode()
        if self._model.is_control(token) or token in self.special_ids.values():
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            found = _BYTE_PIECE.fullmatch(piece)
            assert found is not None
            return bytes([int(found.group(1), 16)])
        return piece.replace(META_SPACE, " ").encode()

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
        for name, byte in STAND_INS.items():
            own[name] = model.piece_to_id(f"<0x{byte:02X}>")
        return own

    def _check_byte_pieces(self, origin: str) -> None:
        found = self._model.piece_to_id("<0x00>")
        if not self._model.is_byte(found):
            raise ValueError(
                f"{origin} has no byte pieces, so not every text fits; run tokenize, or import a "
                "tokenizer with byte fallback"
            )
