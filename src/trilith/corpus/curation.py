"""The stage `curate`: a source through the gates, into documents with a split."""

import logging
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from trilith.corpus.config import SPLITS, CorpusConfig
from trilith.corpus.documents import Document, split_of, text_id, write_documents
from trilith.corpus.duplicates import exact_key, near_duplicates
from trilith.corpus.gates import (
    RULES,
    Candidate,
    distinct_line_share,
    docstring_share,
    first_failure,
    parse_python,
    stated_licence,
)
from trilith.corpus.sources import RawDocument, Source, open_source
from trilith.files import replacing

log = logging.getLogger(__name__)


def curate(config: CorpusConfig, out_dir: Path) -> dict[str, int | float]:
    """Write the documents of a source that pass every gate to `out_dir`/documents.parquet.

    Args:
        config: the source, the thresholds and the shares of the splits.
        out_dir: a folder; it is replaced as a whole when everything is done.

    Returns:
        Flat metrics: `documents_in`, `documents_out`, `bytes_in`, `bytes_out` (bytes as read and
        as UTF-8), `rejected/<rule>` in the order of the gates, `documents/<split>` and
        `bytes/<split>`.

    Raises:
        FileNotFoundError: the folder to read does not exist.
        ValueError: there is nothing to read, nothing is left, or a split is empty.
    """
    started = time.perf_counter()
    source = open_source(config.source)
    funnel = _Funnel(config)
    for raw in _with_progress(source):
        funnel.add(raw)
    documents = funnel.finish()
    with replacing(out_dir) as partial:
        partial.mkdir()
        write_documents(partial / "documents.parquet", documents)
    metrics = funnel.metrics(documents)
    log.info(
        "curate: kept %d of %d documents (%.1f of %.1f MB) in %.1f s, in %s",
        metrics["documents_out"],
        metrics["documents_in"],
        metrics["bytes_out"] / 1e6,
        metrics["bytes_in"] / 1e6,
        time.perf_counter() - started,
        out_dir,
    )
    return metrics


class _Funnel:
    """Takes raw documents one by one, counts what it rejects and keeps the rest."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._kept: list[Document] = []
        self._seen: set[str] = set()
        self._rejected: Counter[str] = Counter()
        self._documents_in = 0
        self._bytes_in = 0

    def add(self, raw: RawDocument) -> None:
        self._documents_in += 1
        self._bytes_in += raw.num_bytes
        judged = self._judge(raw)
        if isinstance(judged, str):
            self._rejected[judged] += 1
        else:
            self._kept.append(judged)

    def finish(self) -> list[Document]:
        """Drop near duplicates; refuse a corpus that nobody can train or test on."""
        texts = [document.text for document in self._kept]
        repeats = near_duplicates(texts, self._config.duplicates)
        self._rejected["near_duplicate"] = len(repeats)
        documents = [each for place, each in enumerate(self._kept) if place not in repeats]
        if not documents:
            counts = ", ".join(f"{rule} {count}" for rule, count in self._rejected.items() if count)
            raise ValueError(
                f"no document is left: {self._documents_in} read, rejected by {counts or 'no rule'}"
                "; check corpus.source, or loosen that rule in corpus.gates"
            )
        _check_splits(documents)
        return documents

    def metrics(self, documents: list[Document]) -> dict[str, int | float]:
        num_bytes = {name: 0 for name in SPLITS}
        for document in documents:
            num_bytes[document.split] += len(document.text.encode())
        counts = Counter(document.split for document in documents)
        return {
            "documents_in": self._documents_in,
            "documents_out": len(documents),
            "bytes_in": self._bytes_in,
            "bytes_out": sum(num_bytes.values()),
            **{f"rejected/{rule}": self._rejected[rule] for rule in RULES},
            **{f"documents/{name}": counts[name] for name in SPLITS},
            **{f"bytes/{name}": num_bytes[name] for name in SPLITS},
        }

    def _judge(self, raw: RawDocument) -> Document | str:
        if raw.num_bytes > self._config.gates.max_bytes:
            return "size"
        try:
            text = raw.read()
        except (UnicodeError, SyntaxError):
            return "encoding"
        licence = stated_licence(text) or raw.licence.lower()
        failure = first_failure(Candidate(text, licence, raw.language), self._config.gates)
        if failure is not None:
            return failure
        score = _score(text, raw.language)
        if score is None:
            return "syntax"
        key = exact_key(text)
        if key in self._seen:
            return "exact_duplicate"
        self._seen.add(key)
        return self._document(raw, text=text, licence=licence, score=score)

    def _document(self, raw: RawDocument, *, text: str, licence: str, score: float) -> Document:
        document_id = text_id(text)
        return Document(
            id=document_id,
            text=text,
            language=raw.language,
            source=raw.source,
            path=raw.path,
            licence=licence,
            label="positive",
            score=score,
            split=split_of(document_id, self._config.split),
        )


def _score(text: str, language: str) -> float | None:
    """Quality in 0..1, or None for Python that does not parse."""
    if language != "python":
        return distinct_line_share(text)
    tree = parse_python(text)
    return None if tree is None else docstring_share(tree)


def _check_splits(documents: list[Document]) -> None:
    counts = Counter(document.split for document in documents)
    empty = [name for name in SPLITS if not counts[name]]
    if empty:
        raise ValueError(
            f"of {len(documents)} documents none fell into {' and '.join(empty)}; add documents, "
            f"raise corpus.split.{empty[0]}, or change corpus.split.salt"
        )


def _with_progress(source: Source) -> tqdm:
    # disable=None: no bar where nobody watches, as in logs.
    return tqdm(
        source.documents, total=source.num_documents, desc="curate", unit="doc", disable=None
    )
