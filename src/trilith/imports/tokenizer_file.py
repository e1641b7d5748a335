"""The tokenizer of another project: a SentencePiece model, or a tokenizer.json and its marks.

Which ids begin and end a text stands beside a tokenizer.json: by name in tokenizer_config.json,
else by number in config.json, else in generation_config.json.
"""

import json
from pathlib import Path
from typing import Any

from trilith.files import read_json
from trilith.imports.source import require_tokenizer_size
from trilith.tokens import JsonMarks, Tokenizer, has_marks, is_json, join_marks

_MARKS = ("bos", "eos", "pad", "unk")
_NAMING = "tokenizer_config.json"
_NUMBERING = ("config.json", "generation_config.json")


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
        path: a SentencePiece model, a tokenizer.json, or what `trilith import` made of one.
        rows: of the embedding.
        model: folder, where the marks of a tokenizer.json may be told, too, or file.

    Raises:
        ValueError: it is damaged, does not fit the embedding, or has no mark that ends a text.
    """
    content = path.read_bytes()
    if is_json(content) and not has_marks(content):
        content = _with_marks(content, path, rows=rows, model=model)
    tokenizer = Tokenizer(content, origin=str(path))
    require_tokenizer_size(tokenizer, rows=rows, origin=model)
    return tokenizer


def _with_marks(content: bytes, path: Path, *, rows: int, model: Path) -> bytes:
    try:
        spec = json.loads(content)
        ids = spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"] or ()}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no tokenizer.json with a vocabulary, or is damaged; get another copy"
        ) from None
    folders = list(dict.fromkeys((path.parent, model)))
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
    for place in (folder / file for file in _NUMBERING for folder in folders):
        number = _value(place, f"{mark}_token_id")
        # Several ends of a text: the first is the one of a document.
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and number >= 0:
            return number
    return None


def _value(path: Path, key: str) -> Any:
    content = read_json(path, made_by="its own project") if path.is_file() else None
    return content.get(key) if isinstance(content, dict) else None
