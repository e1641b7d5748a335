"""The stage `tokenize`: documents to a tokenizer and token shards."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from trilith.files import replacing, require
from trilith.tokens.config import TokenizerConfig
from trilith.tokens.learning import train_tokenizer
from trilith.tokens.shards import SPLITS, SplitManifest, write_manifest, write_shard
from trilith.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_COLUMNS = ("id", "text", "split")
_DOCUMENTS_PER_BATCH = 64


class _Text(NamedTuple):
    id: str
    text: str
    num_bytes: int


def tokenize_corpus(
    config: TokenizerConfig, *, documents: Path, out_dir: Path
) -> dict[str, int | float]:
    """Train a tokenizer, or take a given one, and write every split as token shards.

    Args:
        config: settings of the tokenizer.
        documents: the parquet file that `curate` wrote; `id`, `text` and `split` are read.
        out_dir: a folder; it is replaced as a whole when everything is done.

    Returns:
        Flat metrics: `vocab_size`, and for each split `tokens/`, `documents/`, `bytes/` and
        `bytes_per_token/`. Tokens count the marks.

    Raises:
        FileNotFoundError: the documents, or the tokenizer that is given, do not exist.
        ValueError: they are damaged or lack a split, or the vocabulary does not fit them.
    """
    started = time.perf_counter()
    given = None if config.from_file is None else _given_tokenizer(config)
    texts = _read_texts(documents)
    tokenizer = given or train_tokenizer(_training_texts(texts["train"], config), config)
    trained_s = time.perf_counter() - started
    with replacing(out_dir) as partial:
        partial.mkdir()
        splits = _write_splits(partial, texts=texts, tokenizer=tokenizer, config=config)
        write_manifest(partial, tokenizer=tokenizer, splits=splits)
    metrics = _metrics(splits, vocab_size=tokenizer.vocab_size)
    log.info(
        "tokenize: %d documents, %.2f million tokens in %.1f s (%.1f s of it training), in %s",
        sum(split.documents for split in splits.values()),
        sum(split.tokens for split in splits.values()) / 1e6,
        time.perf_counter() - started,
        trained_s,
        out_dir,
    )
    return metrics


def _read_texts(path: Path) -> dict[str, list[_Text]]:
    """Texts by split, each in the order of the ids: hashes, so neighbours on disk part ways."""
    path = require(path, made_by="curate")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = file.schema_arrow.names
            table = file.read(columns=list(_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged (not parquet: {error}); delete it and run curate"
        ) from error
    if not set(_COLUMNS) <= set(found):
        raise ValueError(
            f"{path} lacks columns: got {found}, expected {list(_COLUMNS)} among them; run curate"
        )
    texts: dict[str, list[_Text]] = {name: [] for name in SPLITS}
    for row in table.sort_by("id").to_pylist():
        if row["split"] not in texts:
            raise ValueError(
                f"{path} has a document in split {row['split']!r}, expected {list(SPLITS)}; "
                "run curate"
            )
        texts[row["split"]].append(_Text(row["id"], row["text"], len(row["text"].encode())))
    for name, split in texts.items():
        if not split:
            raise ValueError(f"{path} has no document in split {name!r}; run curate")
    return texts


def _given_tokenizer(config: TokenizerConfig) -> Tokenizer:
    assert config.from_file is not None
    tokenizer = Tokenizer.load(require(Path(config.from_file), made_by="trilith import"))
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size={config.vocab_size}, but {config.from_file} has "
            f"{tokenizer.vocab_size} ids; set tokenizer.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def _training_texts(texts: list[_Text], config: TokenizerConfig) -> Iterator[str]:
    budget_bytes = config.training_bytes
    assert budget_bytes is not None
    for text in texts:
        yield text.text
        budget_bytes -= text.num_bytes
        if budget_bytes <= 0:
            return


def _write_splits(
    folder: Path, *, texts: dict[str, list[_Text]], tokenizer: Tokenizer, config: TokenizerConfig
) -> dict[str, SplitManifest]:
    total = sum(len(split) for split in texts.values())
    # disable=None: no bar where nobody watches, as in logs.
    with tqdm(total=total, desc="tokenize", unit="doc", disable=None) as progress:

        def encoded(split: list[_Text]) -> Iterator[list[list[int]]]:
            for start in range(0, len(split), _DOCUMENTS_PER_BATCH):
                batch = [text.text for text in split[start : start + _DOCUMENTS_PER_BATCH]]
                yield tokenizer.encode_batch(batch, num_threads=config.num_threads)
                progress.update(len(batch))

        return {
            name: write_shard(
                folder,
                split=name,
                batches=encoded(split),
                num_bytes=sum(text.num_bytes for text in split),
                vocab_size=tokenizer.vocab_size,
                marks=(tokenizer.bos_id, tokenizer.eos_id),
            )
            for name, split in texts.items()
        }


def _metrics(splits: dict[str, SplitManifest], *, vocab_size: int) -> dict[str, int | float]:
    metrics: dict[str, int | float] = {"vocab_size": vocab_size}
    for name, split in splits.items():
        metrics[f"tokens/{name}"] = split.tokens
        metrics[f"documents/{name}"] = split.documents
        metrics[f"bytes/{name}"] = split.bytes
        metrics[f"bytes_per_token/{name}"] = split.bytes / split.tokens
    return metrics
