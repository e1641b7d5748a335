"""The parquet file: its columns, its reader's errors, and a split that nobody can shift."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trilith.corpus import Document, SplitConfig, read_documents, split_of, write_documents


def document(text: str) -> Document:
    return Document(
        id=hashlib.sha256(text.encode()).hexdigest(),
        text=text,
        language="text",
        source="folder/x",
        path="a.txt",
        licence="mit",
        label="positive",
        score=0.5,
        split="train",
    )


def test_documents_come_back_as_written_in_zstd(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    documents = [document("tab\there\n\u5b57\U0001f600\0"), document("")]
    write_documents(path, documents)
    table = read_documents(path)
    assert ",".join(table.column_names) == (
        "id,text,language,source,path,licence,label,score,findings,split"
    )
    assert [Document(**row) for row in table.to_pylist()] == documents
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "ZSTD"


def test_datasets_reads_the_file(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "documents.parquet"
    write_documents(path, [document("a"), document("b")])
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    assert [row["text"] for row in rows] == ["a", "b"]


def test_a_missing_file_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="curate makes it"):
        read_documents(tmp_path / "documents.parquet")


def test_a_cut_or_changed_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    write_documents(path, [document("text " * 1000)])
    whole = path.read_bytes()
    for damaged in (b"", whole[:-20], b"not parquet at all", whole[:50] + b"\0" * 50 + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"documents\.parquet is damaged.*run curate"):
            read_documents(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), path)
    with pytest.raises(ValueError, match=r"columns id \(string\), text \(string\), .*run curate"):
        read_documents(path)


def test_the_split_follows_the_shares_and_the_salt() -> None:
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    config = SplitConfig(train=0.7, validation=0.2, test=0.1)
    splits = [split_of(each, config) for each in ids]
    # Four standard deviations of a binomial of 20,000 are 0.013 at most.
    for name, share in config.shares.items():
        assert splits.count(name) / len(ids) == pytest.approx(share, abs=0.013)
    salted = SplitConfig(train=0.7, validation=0.2, test=0.1, salt="other")
    assert splits != [split_of(each, salted) for each in ids]


def test_the_split_of_a_known_document_never_changes() -> None:
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    names = [split_of(each, SplitConfig()) for each in ids]
    digest = hashlib.sha256(",".join(names).encode()).hexdigest()
    assert digest == "ae1ceffd72da4224d58007e1c596a1516c3a13506c54ba95980acf909bbeac60"


def test_a_larger_training_share_takes_only_from_its_neighbour() -> None:
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    small = SplitConfig(train=0.8, validation=0.1, test=0.1)
    large = SplitConfig(train=0.85, validation=0.05, test=0.1)
    for each in ids:
        before, after = split_of(each, small), split_of(each, large)
        assert before == after or (before, after) == ("validation", "train")
