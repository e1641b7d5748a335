"""A `tokenizer.json` of the library `tokenizers`: byte-level BPE, or BPE on U+2581 for spaces.

Such a file does not say which ids begin and end a text; ours does (`marked_file.py`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import tokenizers

from trilith.tokens.marked_file import compact_json, join_told, read_stop_ids, split_marks
from trilith.tokens.marks import (
    META_SPACE,
    REPLACEMENT,
    STAND_INS,
    end_names,
    without_stand_ins,
)

_NO_CAUSE = "only byte-level and U+2581 BPE with a piece for each byte are read"
_META_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


@dataclass(frozen=True)
class JsonMarks:
    """Ids that a tokenizer.json leaves to files beside it; None where its project has none.

    `vocab_size` counts the rows of the embedding: those beyond the pieces stand for nothing.
    """

    bos: int | None
    eos: int
    pad: int | None
    unk: int | None
    vocab_size: int


def is_json(content: bytes) -> bool:
    """True if the content is JSON and no SentencePiece model, which begins with a line break."""
    return content[:1] == b"{"


def join_marks(tokenizer_json: Any, marks: JsonMarks) -> bytes:
    """Return the content of our file for a parsed tokenizer.json."""
    return join_told(asdict(marks), compact_json(tokenizer_json))


class JsonModel:
    """What `Tokenizer` asks of a model; `tokenizers` finds the pieces, their bytes are ours.

    Of its own marks it has what its project names. Without a begin mark the end mark begins a text
    too, and stand-ins are the pieces of bytes, as for SentencePiece; `<unk>` may be missing.
    """

    is_imported = True

    def __init__(self, content: bytes, *, origin: str) -> None:
        marks, self.stop_ids, self.tokenizer_json = _split(content, origin)
        spec = json.loads(self.tokenizer_json)
        self._model = _parsed(self.tokenizer_json, origin)
        self._pieces: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        self._names = {token: piece for piece, token in self._pieces.items()}
        self._is_byte_level, self.adds_space = _ways(spec, origin)
        self._byte_ids = self._find_byte_ids(origin)
        self.vocab_size = marks.vocab_size
        own = self._own_ids(marks, origin)
        self.special_ids = {"<s>": marks.eos} | self._bytes_as_marks() | own
        self.stand_ins = frozenset(self.special_ids) - frozenset(own)
        added: list[dict[str, Any]] = spec.get("added_tokens") or []
        self._added = {token["id"] for token in added}
        # An end that is told is a mark, whether the file calls it special or not.
        special = {t["id"] for t in added if t["special"] or t["id"] in self.stop_ids}
        self._special = special | set(self.special_ids.values())
        self._unk_id = self.special_ids.get("<unk>")
        self.bytes_of = [self._piece_bytes(token) for token in range(self.vocab_size)]

    def encode_batch(self, texts: Sequence[str], *, num_threads: int) -> list[list[int]]:
        """Turn each text into ids; several threads are as many as `tokenizers` has."""
        plain = [without_stand_ins(text) for text in texts]
        if num_threads > 1:
            encodings = self._model.encode_batch_fast(plain, add_special_tokens=False)
        else:
            encodings = [self._model.encode(text, add_special_tokens=False) for text in plain]
        return [self._without_marks(encoding.ids) for encoding in encodings]

    def piece(self, token: int) -> str:
        """Return the name of an id; rows beyond the pieces have none."""
        return self._names.get(token, "")

    def _without_marks(self, ids: list[int]) -> list[int]:
        """Spell names of marks in bytes: merges find some, and so do marks not called special."""
        if self._special.isdisjoint(ids):
            return ids
        return [part for token in ids for part in self._spelled(token)]

    def _spelled(self, token: int) -> Iterable[int]:
        if token not in self._special:
            return (token,)
        return (self._byte_ids[byte] for byte in self.piece(token).encode())

    def _piece_bytes(self, token: int) -> bytes:
        if token == self._unk_id:
            return REPLACEMENT.encode()
        if token in self._special or token not in self._names:
            return b""
        piece = self._names[token]
        if not self._is_byte_level:
            byte = _BYTE_OF_PIECE.get(piece)
            return piece.replace(META_SPACE, " ").encode() if byte is None else bytes([byte])
        if token in self._added or not set(piece) <= _BYTE_OF_CHARACTER.keys():
            return piece.encode()
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)

    def _find_byte_ids(self, origin: str) -> list[int]:
        names = _BYTE_OF_CHARACTER if self._is_byte_level else _BYTE_OF_PIECE
        found = [self._pieces.get(name) for name in sorted(names, key=names.__getitem__)]
        if None in found:
            raise ValueError(
                f"{origin} has no piece for byte {found.index(None)}, so not every text fits; "
                f"{_NO_CAUSE}"
            )
        return found  # type: ignore[return-value]

    def _bytes_as_marks(self) -> dict[str, int]:
        return {name: self._byte_ids[byte] for name, byte in STAND_INS.items()}

    def _own_ids(self, marks: JsonMarks, origin: str) -> dict[str, int]:
        largest = max(self._names)
        if largest >= marks.vocab_size:
            raise ValueError(
                f"{origin} has ids up to {largest} for an embedding of {marks.vocab_size} rows; "
                "give the model's own tokenizer"
            )
        named = {"<unk>": marks.unk, "<s>": marks.bos, "</s>": marks.eos, "<pad>": marks.pad}
        every = named | end_names(self.stop_ids)
        unknown = [f"{name}={token}" for name, token in every.items() if not self._knows(token)]
        if unknown:
            raise ValueError(f"{origin} has no piece for {', '.join(unknown)}; get another copy")
        own = {name: token for name, token in named.items() if token is not None}
        if marks.unk is not None and marks.unk in (marks.bos, marks.eos, marks.pad):
            # GPT-2 names its one mark here too, and never gives it to text.
            del own["<unk>"]
        return own

    def _knows(self, token: int | None) -> bool:
        return token is None or token in self._names


class _Parts(NamedTuple):
    marks: JsonMarks
    stop_ids: tuple[int, ...]
    tokenizer_json: str


def _split(content: bytes, origin: str) -> _Parts:
    """Tell our line from the project's file."""
    told, project_file = split_marks(content)
    ids = {name: value for name, value in (told or {}).items() if name != "stop_ids"}
    try:
        marks = JsonMarks(**ids)
    except TypeError:
        raise ValueError(
            f"{origin} does not say which ids begin and end a text, as a tokenizer.json alone does "
            "not, or is damaged; give it to `trilith import` or `trilith pack` with the model"
        ) from None
    numbers = [value for value in asdict(marks).values() if value is not None]
    if any(type(value) is not int or value < 0 for value in numbers) or marks.eos is None:
        raise ValueError(f"{origin} is damaged: its marks are {asdict(marks)}; import it again")
    stop_ids = read_stop_ids(told, eos=marks.eos, origin=origin)
    return _Parts(marks, stop_ids, project_file.decode("utf-8", "replace"))


def _parsed(tokenizer_json: str, origin: str) -> tokenizers.Tokenizer:
    try:
        model = tokenizers.Tokenizer.from_str(tokenizer_json)
    # The library raises nothing narrower.
    except Exception as error:
        raise ValueError(f"{origin} is no tokenizer.json, or is damaged ({error})") from None
    model.no_truncation()
    model.no_padding()
    # Names of marks in a text are text.
    model.encode_special_tokens = True
    return model


def _ways(spec: dict[str, Any], origin: str) -> tuple[bool, bool]:
    """Tell whether pieces are bytes written as characters, and whether a space goes first."""
    model, decoding = spec["model"], _steps(spec, "decoder")
    kinds = {step["type"] for step in decoding}
    problem = None
    if model.get("type", "BPE") != "BPE":
        problem = f"is a {model['type']} model"
    elif model.get("dropout"):
        problem = f"gives other ids each time (dropout={model['dropout']})"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        problem = "marks the parts of a word"
    elif kinds != {"ByteLevel"} and (not kinds <= _META_STEPS or "ByteFallback" not in kinds):
        problem = f"decodes with {', '.join(sorted(kinds)) or 'nothing'}"
    elif not all(_turns_spaces(step) for step in decoding if step["type"] == "Replace"):
        problem = "replaces text when it decodes"
    if problem:
        raise ValueError(f"{origin} {problem}; {_NO_CAUSE}")
    if kinds != {"ByteLevel"}:
        return False, any(map(_strips, decoding))
    encoding = [*_steps(spec, "normalizer"), *_steps(spec, "pre_tokenizer")]
    byte_steps = [step for step in encoding if step["type"] == "ByteLevel"]
    if not byte_steps:
        raise ValueError(f"{origin} decodes bytes that it never makes; {_NO_CAUSE}")
    return True, any(step.get("add_prefix_space") for step in byte_steps)


def _steps(spec: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the parts of a decoder, normalizer or pre-tokenizer in their order."""
    whole = spec.get(key)
    if whole is None:
        return []
    inner = {"decoder": "decoders", "normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
    return whole[inner[key]] if whole["type"] == "Sequence" else [whole]


def _turns_spaces(step: dict[str, Any]) -> bool:
    return (step["pattern"], step["content"]) == ({"String": META_SPACE}, " ")


def _strips(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return step["content"] == " " and step["start"] > 0
    return step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"


def _characters_of_bytes() -> list[str]:
    """Return how byte-level BPE writes each byte: as Latin-1 if that is visible, else from U+0100.

    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: GPT-2's code.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(_characters_of_bytes())}
_BYTE_OF_PIECE = {f"<0x{byte:02X}>": byte for byte in range(256)}
