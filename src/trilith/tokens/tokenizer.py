"""The tokenizer: text <-> ids, exact for every string, and text from ids that come one by one.

The reference for what an id means. What finds the pieces is told by the content of the file.
"""

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from trilith.files import require
from trilith.tokens.json_model import JsonModel, is_json
from trilith.tokens.marked_file import join_told, split_marks
from trilith.tokens.marks import end_names
from trilith.tokens.sentencepiece_model import SentencePieceModel


class Tokenizer:
    """Turns text into ids and back.

    `decode(encode(text)) == text` for every string that UTF-8 can hold. Special tokens are ids
    only: their names in a text are text. `decode` gives nothing for them, and U+FFFD for `<unk>`
    and for bytes that are not UTF-8 (`encode` makes neither, a model may).

    An imported tokenizer, a SentencePiece model or a tokenizer.json, gives the ids of its own
    project, so it is exact as far as that one is: it may squeeze spaces or compose characters,
    U+2581 may come back as a space, and U+0000 to U+0003 as U+FFFD, since the pieces of these four
    stand in for the marks that it lacks.

    Attributes:
        special_ids: id of each special token; SPECIAL_IDS but for imported tokenizers, of which
            some have no `<unk>`, and some end a text with `</s>2`, `</s>3` ... too.
        stop_ids: ids that end a text, `eos_id` first; the end mark of an answer is not among them.
        stand_ins: names of those special tokens whose id is that of something else.
        is_imported: True for a tokenizer that `tokenize` did not train.
        vocab_size: number of ids; of a tokenizer.json, rows of its model's embedding.
        tokenizer_json: the file of the library `tokenizers` that it is; None for SentencePiece.
    """

    def __init__(self, model: bytes, *, origin: str = "the tokenizer") -> None:
        kind = JsonModel if is_json(split_marks(model).project_file) else SentencePieceModel
        self._model: JsonModel | SentencePieceModel = kind(model, origin=origin)
        self.model_bytes = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._model.vocab_size
        self.is_imported = self._model.is_imported
        self.stop_ids = self._model.stop_ids
        self.special_ids = self._model.special_ids | end_names(self.stop_ids)
        self.stand_ins = self._model.stand_ins
        self.unk_id = self.special_ids.get("<unk>")
        self.bos_id = self.special_ids["<s>"]
        self.eos_id = self.special_ids["</s>"]
        self.pad_id = self.special_ids["<pad>"]
        self.user_id = self.special_ids["<|user|>"]
        self.assistant_id = self.special_ids["<|assistant|>"]
        self.end_id = self.special_ids["<|end|>"]

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

    def stopping_at(self, ids: Iterable[int], *, origin: str) -> "Tokenizer":
        """Return this tokenizer with more ids that end a text; itself if all of them do already.

        Args:
            ids: in any order.
            origin: what says so, for the error.

        Raises:
            ValueError: an id is none of this vocabulary.
        """
        own = {self.special_ids[name] for name in {"</s>", "<|end|>"} - self.stand_ins}
        more = [token for token in dict.fromkeys(ids) if token not in {*own, *self.stop_ids}]
        for token in more:
            if not (0 <= token < self.vocab_size and self.piece(token)):
                raise ValueError(
                    f"{origin} says that id {token} ends a text, and the tokenizer has no such "
                    "piece; mend it, or get another copy"
                )
        if not more:
            return self
        told, project_file = split_marks(self.model_bytes)
        stop_ids = {"stop_ids": [*self.stop_ids, *more]}
        return Tokenizer(join_told((told or {}) | stop_ids, project_file), origin=origin)

    @property
    def project_file(self) -> bytes:
        """The file of its own project, without our line."""
        return split_marks(self.model_bytes).project_file

    @property
    def tokenizer_json(self) -> str | None:
        return self._model.tokenizer_json if isinstance(self._model, JsonModel) else None

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, without marks at its begin or end.

        Raises:
            ValueError: the text holds a lone surrogate, which is half a character.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 1) -> list[list[int]]:
        """Turn each of many texts into ids; the same as `encode` one by one, but faster."""
        whole = [_whole_characters(text) for text in texts]
        return self._model.encode_batch(whole, num_threads=num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Raises:
            ValueError: an id is not of this vocabulary.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._model.adds_space else text

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes of one id: empty for a special token, maybe part of a character."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"id {token} is not in 0..{self.vocab_size - 1}; "
                "the ids come from another tokenizer than this one"
            )
        return self._model.bytes_of[token]

    def piece(self, token: int) -> str:
        """Name of one id as its model has it, for tables and exports."""
        return self._model.piece(token)


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
