"""Sources read what they should, in a fixed order, and say clearly why they cannot."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trilith.corpus import CorpusConfig, SourceConfig
from trilith.corpus.sources import decode, open_source

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "text"


def dataset_config(path: Path, **changes: object) -> SourceConfig:
    settings: dict[str, object] = {
        "kind": "dataset",
        "licence": "mit",
        "name": "json",
        "data_files": (str(path),),
        "split": "train",
        "streaming": True,
        "text_field": "text",
        "language": "text",
    }
    return SourceConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    content = [{"text": f"\ufeffrow {n}\r\nend", "terms": "MIT" if n else None} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"\xef\xbb\xbfa", "a"),
        ("\u00e9\u5b57".encode(), "\u00e9\u5b57"),
    ],
)
def test_text_is_utf8_with_plain_line_ends_and_no_mark(raw: bytes, text: str) -> None:
    assert decode(raw, is_python=False) == text
    assert decode(raw, is_python=True) == text


def test_python_may_declare_its_encoding_but_text_may_not() -> None:
    raw = b"# -*- coding: latin-1 -*-\nname = '\xe9'\n"
    assert decode(raw, is_python=True).endswith("'\u00e9'\n")
    with pytest.raises(UnicodeDecodeError):
        decode(raw, is_python=False)
    with pytest.raises(SyntaxError):
        decode(b"# coding: no-such-code\n", is_python=True)


def test_a_folder_is_read_in_path_order_without_what_is_excluded(
    tmp_path: Path, folder_config: Callable[..., CorpusConfig]
) -> None:
    for name in ("b.py", "a/z.py", "a.py", "a/test/t.py", "deep/skip_me.py", "c.md", "gen/x/y.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "broken.py").symlink_to(tmp_path / "absent.py")
    config = folder_config(tmp_path, exclude=("test", "skip_*", "gen/x")).source
    source = open_source(config)
    documents = list(source.documents)
    assert [document.path for document in documents] == ["a/z.py", "a.py", "b.py"]
    assert source.num_documents == 3
    assert documents[0].language == "python"
    limited = open_source(folder_config(tmp_path, max_documents=2).source)
    assert len(list(limited.documents)) == limited.num_documents == 2


def test_the_standard_library_gives_relative_paths_and_leaves_out_packages() -> None:
    config = SourceConfig(
        kind="stdlib", licence="psf-2.0", suffixes=(".py",), exclude=("site-packages", "test")
    )
    paths = [document.path for document in open_source(config).documents]
    assert "json/decoder.py" in paths
    assert not [path for path in paths if path.startswith(("/", "site-packages/", "test/"))]


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_of_a_local_file_are_read_by_datasets(
    rows: Path, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    config = dataset_config(rows, streaming=streaming, licence_field="terms", max_documents=3)
    documents = list(open_source(config).documents)
    assert [document.read() for document in documents] == [f"row {n}\nend" for n in range(3)]
    assert [document.path for document in documents] == ["train/0", "train/1", "train/2"]
    assert [document.licence for document in documents] == ["mit", "MIT", "MIT"]
    assert documents[0].num_bytes == len("\ufeffrow 0\r\nend".encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_field": "body"}, r"text_field='body' is no column .* \['terms', 'text'\]"),
        ({"licence_field": "x"}, r"licence_field='x' is no column"),
        ({"split": "test"}, r"the dataset cannot be read .* check name, subset, data_files"),
        ({"data_files": ("/absent.jsonl",)}, r"the dataset cannot be read"),
    ],
)
def test_a_dataset_that_cannot_be_read_says_why(
    rows: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(open_source(dataset_config(rows, **changes)).documents)


def test_a_column_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": 5}\n')
    with pytest.raises(ValueError, match="holds int, expected a string"):
        list(open_source(dataset_config(path)).documents)


def test_a_missing_folder_is_named(
    tmp_path: Path, folder_config: Callable[..., CorpusConfig]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"corpus\.source\.path=.*absent.* is not a folder"):
        open_source(folder_config(tmp_path / "absent").source)


def test_a_folder_without_matching_files_is_an_error(
    tmp_path: Path, folder_config: Callable[..., CorpusConfig]
) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"no file below the folder ends in \['.py', '.txt'\]"):
        open_source(folder_config(tmp_path).source)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared texts are not on this machine")
def test_real_novels_lose_their_mark_and_their_carriage_returns(
    folder_config: Callable[..., CorpusConfig],
) -> None:
    raws = [path.read_bytes() for path in sorted((DATA / "novels").rglob("*.txt"))]
    assert any(raw.startswith(b"\xef\xbb\xbf") for raw in raws)
    assert any(b"\r\n" in raw for raw in raws)
    source = open_source(folder_config(DATA / "novels").source)
    texts = [document.read() for document in source.documents]
    assert len(texts) == len(raws)
    assert not any("\r" in text or text.startswith("\ufeff") for text in texts)
