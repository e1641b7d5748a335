"""The documents of a corpus as one parquet file: the columns, the split, writing and reading."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trilith.corpus.config import SplitConfig
from trilith.files import replacing, require

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("licence", pa.string()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("findings", pa.list_(pa.string())),
        ("split", pa.string()),
    ]
)
COLUMNS = tuple(_SCHEMA.names)
_ROWS_PER_GROUP = 1024


@dataclass(frozen=True)
class Document:
    """One kept document.

    Attributes:
        id: SHA-256 of the text, in hex; with path and licence it is the provenance.
        text: the text, with `\\n` line ends.
        language: `python`, `text`, ...
        source: which corpus it came from.
        path: where it lay, relative to the root of the source.
        licence: SPDX expression, in lower case.
        label: `positive` for what may be trained on as good.
        score: quality, 0..1; see `gates.docstring_share` and `gates.distinct_line_share`.
        findings: what a scanner found; empty when nothing was.
        split: `train`, `validation` or `test`.
    """

    id: str
    text: str
    language: str
    source: str
    path: str
    licence: str
    label: str
    score: float
    split: str
    findings: list[str] = field(default_factory=list)


def text_id(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_of(document_id: str, config: SplitConfig) -> str:
    """Name the split of a document; it depends on the id and the salt alone."""
    digest = hashlib.sha256(f"{config.salt}:{document_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    for name, share in config.shares.items():
        reached += share
        if place < reached:
            return name
    return name


def write_documents(path: Path, documents: list[Document]) -> None:
    """Write documents to a zstd parquet file, whole or not at all."""
    # Not Dataset.to_parquet: it fixes its own compression. `datasets` reads this file all the same.
    table = pa.Table.from_pylist([asdict(document) for document in documents], schema=_SCHEMA)
    with replacing(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            row_group_size=_ROWS_PER_GROUP,
            write_page_checksum=True,
        )


def read_documents(path: Path) -> pa.Table:
    """Read the documents that `curate` wrote, in its order; the columns are COLUMNS.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds other columns.
    """
    path = require(path, made_by="curate")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged (not parquet: {error}); delete it and run curate"
        ) from error
    if not table.schema.equals(_SCHEMA):
        found, expected = _columns(table.schema), _columns(_SCHEMA)
        raise ValueError(f"{path} has the columns {found}, expected {expected}; run curate")
    return table


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
