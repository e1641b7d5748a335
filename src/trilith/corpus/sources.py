"""Where documents come from: the standard library, a folder, a Hugging Face dataset.

Every source hands out the same thing, unread: a path relative to its root, a licence, a language,
and a function that reads the text.
"""

import os
import platform
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from trilith.corpus.config import SourceConfig

_LANGUAGES = {".py": "python", ".pyi": "python", ".md": "markdown", ".rst": "rst", ".txt": "text"}


class RawDocument(NamedTuple):
    """A document before anyone has read it.

    `read` returns the text with `\\n` line ends and without a byte order mark, or raises
    UnicodeError or SyntaxError when the bytes are not what the encoding promises.
    """

    path: str
    source: str
    licence: str
    language: str
    num_bytes: int
    read: Callable[[], str]


class Source(NamedTuple):
    """The documents of a source in a fixed order, and how many there are where that is known."""

    documents: Iterator[RawDocument]
    num_documents: int | None


def open_source(config: SourceConfig) -> Source:
    """Find the documents of a source; nothing but names is read yet.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the source holds nothing to read.
    """
    if config.kind == "stdlib":
        source = f"stdlib-{platform.python_version()}"
        return _open_files(Path(sysconfig.get_path("stdlib")), config, source=source)
    if config.kind == "folder":
        assert config.path is not None
        root = Path(config.path).expanduser().resolve()
        return _open_files(root, config, source=f"folder/{root.name}")
    return Source(islice(_dataset_rows(config), config.max_documents), num_documents=None)


def decode(raw: bytes, *, is_python: bool) -> str:
    """Decode a file strictly: UTF-8 with or without a mark; Python may declare another (PEP 263).

    Raises:
        UnicodeError: the bytes are not in that encoding.
        SyntaxError: Python declares an encoding that does not exist.
    """
    encoding = "utf-8-sig"
    if is_python:
        encoding, _ = tokenize.detect_encoding(BytesIO(raw).readline)
    return _newlines(raw.decode(encoding))


def _open_files(root: Path, config: SourceConfig, *, source: str) -> Source:
    if not root.is_dir():
        raise FileNotFoundError(
            f"corpus.source.path={config.path!r} is not a folder; give the path of one"
        )
    paths = _matching_files(root, config)[: config.max_documents]
    if not paths:
        raise ValueError(
            f"{root.name}: no file below the folder ends in {list(config.suffixes)} outside "
            f"{list(config.exclude)}; check corpus.source.path, suffixes and exclude"
        )
    documents = (_raw_file(path, root=root, config=config, source=source) for path in paths)
    return Source(documents, num_documents=len(paths))


def _matching_files(root: Path, config: SourceConfig) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        # Pruned here: a site-packages folder can hold far more files than the rest.
        subfolders[:] = [
            name for name in subfolders if not _excluded(here / name, root, config.exclude)
        ]
        found += [
            here / name
            for name in names
            if name.endswith(config.suffixes) and not _excluded(here / name, root, config.exclude)
        ]
    return sorted(path for path in found if path.is_file())


def _excluded(path: Path, root: Path, patterns: tuple[str, ...]) -> bool:
    relative = path.relative_to(root).as_posix()
    return any(
        fnmatchcase(relative if "/" in pattern else path.name, pattern) for pattern in patterns
    )


def _raw_file(path: Path, *, root: Path, config: SourceConfig, source: str) -> RawDocument:
    language = _LANGUAGES.get(path.suffix, path.suffix.lstrip(".") or "text")
    return RawDocument(
        path=path.relative_to(root).as_posix(),
        source=source,
        licence=config.licence,
        language=language,
        num_bytes=path.stat().st_size,
        read=partial(_read_file, path, is_python=language == "python"),
    )


def _read_file(path: Path, *, is_python: bool) -> str:
    return decode(path.read_bytes(), is_python=is_python)


def _dataset_rows(config: SourceConfig) -> Iterator[RawDocument]:
    assert config.name is not None and config.language is not None
    source = f"dataset/{Path(config.name).name}"
    for index, row in enumerate(_load_dataset(config)):
        text = _field(row, config.text_field, key="text_field") or ""
        licence = config.licence
        if config.licence_field:
            licence = _field(row, config.licence_field, key="licence_field") or config.licence
        yield RawDocument(
            path=f"{config.split}/{index}",
            source=source,
            licence=licence,
            language=config.language,
            num_bytes=len(text.encode("utf-8", "surrogatepass")),
            read=partial(_check_text, text),
        )


def _load_dataset(config: SourceConfig) -> Iterator[dict[str, Any]]:
    # Imported here: it costs a second that the other sources need not pay.
    import datasets

    try:
        dataset = datasets.load_dataset(
            config.name,
            config.subset,
            data_files=list(config.data_files) or None,
            split=config.split,
            streaming=config.streaming,
        )
        yield from dataset
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"corpus.source.name={config.name!r}: the dataset cannot be read "
            f"({type(error).__name__}: {error}); check name, subset, data_files and split, "
            "and the network unless the files are local"
        ) from error


def _field(row: dict[str, Any], field: str | None, *, key: str) -> str | None:
    if field not in row:
        raise ValueError(
            f"corpus.source.{key}={field!r} is no column of the dataset; it has {sorted(row)}"
        )
    value = row[field]
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f"corpus.source.{key}={field!r} holds {type(value).__name__}, expected a string; "
            "name a column of text"
        )
    return value


def _check_text(text: str) -> str:
    text.encode("utf-8")
    return _newlines(text.removeprefix("\ufeff"))


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
