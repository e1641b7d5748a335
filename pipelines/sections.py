"""A section of the composed configuration as its dataclass; every key must fit."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# How a file of conf/ says that the user must give a value.
_MISSING = "???"
_MAX_SEED = 2**32 - 1


def build(kind: Any, content: Any, *, key: str) -> Any:
    """Turn plain content into the annotated type, strictly.

    Args:
        kind: a dataclass or an annotation as its fields have them.
        content: dicts, lists and scalars.
        key: the place in the configuration, for the error; empty for the whole of it.

    Raises:
        ValueError: a key is unknown or missing, or a value is of another type.
    """
    if content == _MISSING:
        raise ValueError(f"{key} has no value; set it in params.yaml or on the command line")
    if is_dataclass(kind):
        return _build_dataclass(kind, content, key=key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _build_optional(arguments, content, key=key)
    if origin is Literal:
        return content
    if origin is dict:
        _require(isinstance(content, Mapping), "a mapping", content, key)
        return {k: build(arguments[1], v, key=_below(key, k)) for k, v in content.items()}
    if origin in (list, tuple):
        _require(isinstance(content, list | tuple), "a list", content, key)
        return origin(build(arguments[0], v, key=_below(key, i)) for i, v in enumerate(content))
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    matches = isinstance(content, kind) and (kind is bool or not isinstance(content, bool))
    _require(matches, f"of type {kind.__name__}", content, key)
    return content


def build_seed(content: Any) -> int:
    """Return the seed of all draws.

    Raises:
        ValueError: it is no integer that every generator takes.
    """
    seed = build(int, content, key="seed")
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"seed={seed} must lie in 0..{_MAX_SEED}")
    return seed


def _build_dataclass(kind: Any, content: Any, *, key: str) -> Any:
    _require(isinstance(content, Mapping), "a mapping", content, key)
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in content if name not in known]
    if unknown:
        raise ValueError(
            f"{_below(key, unknown[0])} is not an option; choose from {', '.join(known)}"
        )
    for name, field in known.items():
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if name not in content and not has_default:
            raise ValueError(
                f"{_below(key, name)} is missing; set it in conf/ or on the command line"
            )
    hints = get_type_hints(kind)
    values = {name: build(hints[name], v, key=_below(key, name)) for name, v in content.items()}
    return kind(**values)


def _build_optional(arguments: tuple[Any, ...], content: Any, *, key: str) -> Any:
    if content is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    _require(len(kinds) == 1, f"one of {arguments}", content, key)
    return build(kinds[0], content, key=key)


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _require(condition: bool, expected: str, content: Any, key: str) -> None:
    if not condition:
        raise ValueError(f"{key}={content!r} must be {expected}")
