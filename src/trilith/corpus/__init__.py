"""Documents: sources, gates, duplicates, splits."""

from trilith.corpus.config import (
    CorpusConfig,
    DuplicateConfig,
    GateConfig,
    SourceConfig,
    SplitConfig,
)
from trilith.corpus.curation import curate
from trilith.corpus.documents import Document, read_documents, split_of, write_documents

__all__ = [
    "CorpusConfig",
    "Document",
    "DuplicateConfig",
    "GateConfig",
    "SourceConfig",
    "SplitConfig",
    "curate",
    "read_documents",
    "split_of",
    "write_documents",
]
