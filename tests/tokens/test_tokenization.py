"""The stage as a whole: it learns from the training split alone and names bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trilith.files import sha256
from trilith.tokens import Tokenizer, TokenizerConfig, open_split
from trilith.tokens.tokenization import tokenize_corpus

Row = tuple[str, str, str]
Write = Callable[[Path, list[Row]], Path]


def test_the_metrics_are_those_of_the_shards(
    tmp_path: Path, config: TokenizerConfig, rows: list[Row], write_documents: Write
) -> None:
    documents = write_documents(tmp_path / "documents.parquet", rows)
    metrics = tokenize_corpus(config, documents=documents, out_dir=tmp_path / "tokens")
    assert metrics.pop("vocab_size") == 400
    for split in ("train", "validation", "test"):
        shard = open_split(tmp_path / "tokens", split)
        assert metrics.pop(f"tokens/{split}") == len(shard.tokens)
        assert metrics.pop(f"documents/{split}") == shard.num_documents
        assert metrics.pop(f"bytes/{split}") == shard.num_bytes
        assert metrics.pop(f"bytes_per_token/{split}") == shard.num_bytes / len(shard.tokens)
    assert not metrics


def test_two_runs_write_the_same_bytes_whatever_the_order_of_the_rows(
    tmp_path: Path, config: TokenizerConfig, rows: list[Row], write_documents: Write
) -> None:
    hashes = []
    for name, ordered in (("one", rows), ("two", rows[::-1])):
        documents = write_documents(tmp_path / f"{name}.parquet", ordered)
        tokenize_corpus(config, documents=documents, out_dir=tmp_path / name)
        hashes.append({path.name: sha256(path) for path in (tmp_path / name).iterdir()})
    assert hashes[0] == hashes[1]
    assert set(hashes[0]) == {
        "train.bin", "train.idx", "validation.bin", "validation.idx", "test.bin", "test.idx",
        "manifest.json", "ids.json", "tokenizer.model",
    }  # fmt: skip


def test_only_the_training_split_shapes_the_tokenizer(
    tmp_path: Path, config: TokenizerConfig, rows: list[Row], write_documents: Write
) -> None:
    changed = [
        (each, text if split == "train" else "zyzzyva " * 500, split) for each, text, split in rows
    ]
    hashes = []
    for name, content in (("one", rows), ("two", changed)):
        documents = write_documents(tmp_path / f"{name}.parquet", content)
        tokenize_corpus(config, documents=documents, out_dir=tmp_path / name)
        hashes.append(Tokenizer.load(tmp_path / name / "tokenizer.model").sha256)
    assert hashes[0] == hashes[1]


def test_the_budget_limits_what_the_tokenizer_learns_from(
    tmp_path: Path, config: TokenizerConfig, rows: list[Row], write_documents: Write
) -> None:
    last = ("f" * 64, "quixotic zephyr\n" * 3000, "train")
    documents = write_documents(tmp_path / "documents.parquet", [*rows, last])
    lengths = []
    for budget in (1_000_000, 20_000):
        limited = replace(config, training_bytes=budget)
        tokenize_corpus(limited, documents=documents, out_dir=tmp_path / "tokens")
        tokenizer = Tokenizer.load(tmp_path / "tokens" / "tokenizer.model")
        lengths.append(len(tokenizer.encode("quixotic zephyr")))
    assert lengths[0] <= 3 < lengths[1]


def test_missing_documents_name_the_stage(tmp_path: Path, config: TokenizerConfig) -> None:
    with pytest.raises(FileNotFoundError, match="curate makes it"):
        tokenize_corpus(config, documents=tmp_path / "absent.parquet", out_dir=tmp_path / "tokens")


def test_damaged_documents_are_refused(
    tmp_path: Path, config: TokenizerConfig, rows: list[Row], write_documents: Write
) -> None:
    path = write_documents(tmp_path / "documents.parquet", rows)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"documents\.parquet is damaged .*run curate"):
        tokenize_corpus(config, documents=path, out_dir=tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda row: row[2] != "test", r"has no document in split 'test'; run curate"),
        (lambda row: row[2] != "train", r"has no document in split 'train'"),
    ],
)
def test_documents_without_a_split_are_refused(
    tmp_path: Path,
    config: TokenizerConfig,
    rows: list[Row],
    write_documents: Write,
    keep: Callable[[Row], bool],
    message: str,
) -> None:
    path = write_documents(tmp_path / "documents.parquet", list(filter(keep, rows)))
    with pytest.raises(ValueError, match=message):
        tokenize_corpus(config, documents=path, out_dir=tmp_path / "tokens")


def test_an_unknown_split_and_missing_columns_are_refused(
    tmp_path: Path, config: TokenizerConfig, rows: list[Row], write_documents: Write
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write_documents(tmp_path / "documents.parquet", [*rows, ("0", "text", "dev")])
    with pytest.raises(ValueError, match=r"split 'dev', expected \['train'"):
        tokenize_corpus(config, documents=path, out_dir=tmp_path / "tokens")
    pq.write_table(pa.table({"id": ["a"], "body": ["b"]}), path)
    with pytest.raises(ValueError, match=r"lacks columns: got \['id', 'body'\].*run curate"):
        tokenize_corpus(config, documents=path, out_dir=tmp_path / "tokens")
