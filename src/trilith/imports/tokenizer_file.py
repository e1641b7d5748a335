"""The tokenizer of another project: a SentencePiece model, or a tokenizer.json and its marks.

Which ids begin and end a text stands beside a tokenizer.json: by name in tokenizer_config.json,
else by number in config.json, else in generation_config.json. What more ends a text stands there
by number, beside both kinds; of ends, generation_config.json says it before config.json, as in
`generate` of transformers.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from trilith.files import read_json
from trilith.imports.source import require_tokenizer_size
from trilith.tokens import JsonMarks, Tokenizer, has_marks, is_json, join_marks

_MARKS = ("bos", "eos", "pad", "unk")
_NAMING = "tokenizer_config.json"
_NUMBERING = ("config.json", "generation_config.json")


class _Ends(NamedTuple):
    """Ids that end a text, and what says so."""

    ids: list[int]
    origin: str


def find_tokenizer_file(folder: Path) -> Path:
    """Return the tokenizer's file in a folder: tokenizer.model before tokenizer.json.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in ("tokenizer.model", "tokenizer.json"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} has neither tokenizer.model nor tokenizer.json; give the model's tokenizer with "
        "--tokenizer"
    )


def read_tokenizer(path: Path, *, rows: int, model: Path) -> Tokenizer:
    """Read the tokenizer of a model whose embedding has so many rows.

    An embedding may have more rows than a tokenizer.json has ids: Qwen2 fills up 151,646 to 151,936
    for the hardware. The rows beyond stand for nothing. A SentencePiece model names every row, so
    that another number is a sign of the wrong file.

    Args:
        path: a SentencePiece model, a tokenizer.json, or what `trilith import` made of one, which
            knows all its marks.
        rows: of the embedding.
        model: folder, where marks may be told, too, or file.

    Raises:
        ValueError: it is damaged, does not fit the embedding, or has no mark that ends a text, or
            one that is none of its ids.
    """
    content, folders = path.read_bytes(), list(dict.fromkeys((path.parent, model)))
    is_whole = has_marks(content)
    if is_json(content) and not is_whole:
        content = _with_marks(content, path, rows=rows, folders=folders)
    tokenizer = Tokenizer(content, origin=str(path))
    require_tokenizer_size(tokenizer, rows=rows, origin=model)
    ends = None if is_whole else _find_ends(folders)
    return tokenizer if ends is None else tokenizer.stopping_at(ends.ids, origin=ends.origin)


def _with_marks(content: bytes, path: Path, *, rows: int, folders: list[Path]) -> bytes:
    try:
        spec = json.loads(content)
        ids = spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"] or ()}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no tokenizer.json with a vocabulary, or is damaged; get another copy"
        ) from None
    found = {mark: _find_mark(mark, ids, folders) for mark in _MARKS}
    eos = found.pop("eos")
    if eos is None:
        raise ValueError(
            f"{path}: no eos_token in {_NAMING} and no eos_token_id in {' or '.join(_NUMBERING)} "
            "beside it, so nothing ends a text; add the one that the model was trained with"
        )
    return join_marks(spec, JsonMarks(eos=eos, vocab_size=rows, **found))


def _find_mark(mark: str, ids: dict[str, int], folders: list[Path]) -> int | None:
    for folder in folders:
        name = _value(folder / _NAMING, f"{mark}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name is not None:
            if name not in ids:
                raise ValueError(
                    f"{folder / _NAMING} says {mark}_token={name!r}, which its tokenizer.json does "
                    "not have; get another copy of both"
                )
            return ids[name]
    if mark == "eos":
        ends = _find_ends(folders)
        # The first is the one of a document.
        return None if ends is None else ends.ids[0]
    for place in (folder / file for file in _NUMBERING for folder in folders):
        number = _value(place, f"{mark}_token_id")
        if type(number) is int and number >= 0:
            return number
    return None


def _find_ends(folders: list[Path]) -> _Ends | None:
    for place in (folder / file for file in reversed(_NUMBERING) for folder in folders):
        value = _value(place, "eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if value is None or not ids:
            continue
        if any(type(token) is not int or token < 0 for token in ids):
            raise ValueError(
                f"{place} says eos_token_id={value!r}, expected an id from 0 on or a list of them; "
                "mend it, or get another copy"
            )
        return _Ends(ids, str(place))
    return None


def _value(path: Path, key: str) -> Any:
    content = read_json(path, made_by="its own project") if path.is_file() else None
    return content.get(key) if isinstance(content, dict) else None
