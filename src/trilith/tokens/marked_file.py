"""Our tokenizer file: a project's own, behind a line of JSON with what that leaves to other files.

A tokenizer.json does not say which ids begin and end a text, nor how many rows the embedding has. A
SentencePiece model says both, but knows one end alone: it gets a line where there are several.
"""

import json
from typing import Any, NamedTuple

_KEY = "trilith_tokenizer"


class MarkedFile(NamedTuple):
    """What our line says, None without one, and the project's file."""

    told: dict[str, Any] | None
    project_file: bytes


def has_marks(content: bytes) -> bool:
    """True for a file with our line, False for a project's file alone."""
    return content.startswith(f'{{"{_KEY}":'.encode())


def join_told(told: dict[str, Any], project_file: bytes) -> bytes:
    """Return our file."""
    return compact_json({_KEY: told}) + b"\n" + project_file


def split_marks(content: bytes) -> MarkedFile:
    """Tell our line from the project's file; a damaged line is left where it is."""
    if has_marks(content):
        line, _, rest = content.partition(b"\n")
        try:
            told = json.loads(line)[_KEY]
        except ValueError:
            told = None
        if isinstance(told, dict):
            return MarkedFile(told, rest)
    return MarkedFile(None, content)


def compact_json(content: Any) -> bytes:
    """Return JSON without white space."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def read_stop_ids(told: dict[str, Any] | None, *, eos: int, origin: str) -> tuple[int, ...]:
    """Return all ids that end a text, `eos` first; files with one end do not tell.

    Raises:
        ValueError: what is told is damaged.
    """
    ids = (told or {}).get("stop_ids", [eos])
    is_list = isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
    if not is_list or ids[:1] != [eos] or len(set(ids)) != len(ids):
        raise ValueError(f"{origin} is damaged: its end marks are {ids}; import it again")
    return tuple(ids)
