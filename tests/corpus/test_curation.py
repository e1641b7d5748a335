"""The stage as a whole: what goes in, what comes out, and what it refuses to make."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trilith.corpus import CorpusConfig, SourceConfig, SplitConfig, curate, read_documents
from trilith.corpus.gates import RULES

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "text"
Configure = Callable[..., CorpusConfig]


def rows_of(out_dir: Path) -> list[dict]:
    return read_documents(out_dir / "documents.parquet").to_pylist()


def test_good_documents_are_kept_with_their_provenance(
    folder: Path, folder_config: Configure, tmp_path: Path
) -> None:
    metrics = curate(folder_config(folder), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    paths = sorted(path.name for path in folder.iterdir())
    assert [row["path"] for row in rows] == paths
    for row in rows:
        text = (folder / row["path"]).read_text()
        assert row["text"] == text
        assert row["id"] == hashlib.sha256(text.encode()).hexdigest()
        # One docstring, of the module, among thirteen definitions.
        assert row["score"] == pytest.approx(1 / 13)
        assert (row["language"], row["licence"], row["label"], row["findings"]) == (
            "python", "mit", "positive", []
        )  # fmt: skip
        assert row["source"] == "folder/source"
    assert metrics["documents_in"] == metrics["documents_out"] == len(paths)
    assert (
        metrics["bytes_in"]
        == metrics["bytes_out"]
        == sum(path.stat().st_size for path in folder.iterdir())
    )
    for name in ("train", "validation", "test"):
        mine = [row for row in rows if row["split"] == name]
        assert metrics[f"documents/{name}"] == len(mine) > 0
        assert metrics[f"bytes/{name}"] == sum(len(row["text"].encode()) for row in mine)


def test_each_rule_is_counted_in_the_order_of_the_gates(
    folder: Path, folder_config: Configure, python_source: Callable[..., str], tmp_path: Path
) -> None:
    good = python_source(3)
    bad = {
        "size": "x = 1\n" * 100_000,
        "encoding": b"# \xff\xfe broken\n" * 20,
        "lines": "short = 1\n",
        "letters": "(1, 2, 3, 4)\n" * 20,
        "line_length": python_source(100) + f"x = '{'a' * 2000}'\n",
        "generated": "# @generated\n" + python_source(101),
        "licence": "# SPDX-License-Identifier: GPL-3.0-only\n" + python_source(102),
        "syntax": python_source(103) + "def broken(:\n",
        "exact_duplicate": good + "\n\n",
        "near_duplicate": good.replace("return value + 5", "return value + 50"),
    }
    assert tuple(bad) == RULES
    for rule, content in bad.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / f"zz_{rule}.py").write_bytes(raw)
    config = folder_config(folder)
    config = replace(config, duplicates=replace(config.duplicates, threshold=0.7))
    metrics = curate(config, tmp_path / "out")
    rejected = {key: value for key, value in metrics.items() if key.startswith("rejected/")}
    assert list(rejected) == [f"rejected/{rule}" for rule in RULES]
    assert set(rejected.values()) == {1}, rejected
    assert metrics["documents_in"] == 70
    assert not [row for row in rows_of(tmp_path / "out") if row["path"].startswith("zz_")]


def test_text_that_is_not_python_need_not_parse(
    folder: Path, folder_config: Configure, tmp_path: Path
) -> None:
    story = "".join(f"Once upon a time, in story {number}.\n" for number in range(12))
    (folder / "story.txt").write_bytes(story.replace("\n", "\r\n").encode("utf-8-sig"))
    curate(folder_config(folder), tmp_path / "out")
    [row] = [row for row in rows_of(tmp_path / "out") if row["path"] == "story.txt"]
    assert (row["text"], row["language"], row["score"]) == (story, "text", 1.0)


def test_a_new_file_moves_nobody_to_another_split(
    folder: Path, folder_config: Configure, python_source: Callable[..., str], tmp_path: Path
) -> None:
    config = folder_config(folder)
    curate(config, tmp_path / "out")
    before = {row["id"]: row["split"] for row in rows_of(tmp_path / "out")}
    for number in range(200, 230):
        (folder / f"a_{number}.py").write_text(python_source(number))
    curate(config, tmp_path / "out")
    after = {row["id"]: row["split"] for row in rows_of(tmp_path / "out")}
    assert len(after) == len(before) + 30
    assert {each: after[each] for each in before} == before


def test_two_runs_write_the_same_bytes(
    folder: Path, folder_config: Configure, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        curate(folder_config(folder), tmp_path / name)
    one, two = ((tmp_path / name / "documents.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_when_nothing_is_left_the_error_names_the_rules(
    folder_config: Configure, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_bytes(b"\xff\xfe" * 50)
    (source / "b.py").write_bytes(b"\xff\xfe" * 50)
    (source / "c.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"no document is left: 3 read, .*encoding 2, lines 1"):
        curate(folder_config(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_an_error_that_says_what_to_do(
    folder: Path, folder_config: Configure, tmp_path: Path
) -> None:
    config = replace(
        folder_config(folder, max_documents=6),
        split=SplitConfig(train=0.998, validation=0.001, test=0.001),
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("stays")
    with pytest.raises(ValueError, match=r"none fell into validation and test; .*corpus\.split"):
        curate(config, tmp_path / "out")
    assert (tmp_path / "out" / "old").read_text() == "stays"


def test_part_of_the_standard_library_is_curated(tmp_path: Path, folder_config: Configure) -> None:
    source = SourceConfig(
        kind="stdlib",
        licence="psf-2.0",
        suffixes=(".py",),
        exclude=("site-packages", "test", "tests"),
        max_documents=150,
    )
    gates = folder_config(tmp_path).gates
    metrics = curate(CorpusConfig(source=source, gates=gates), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert 75 < metrics["documents_out"] < metrics["documents_in"] == 150
    assert {row["language"] for row in rows} == {"python"}
    assert {row["source"].split(".")[0] for row in rows} == {"stdlib-3"}


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared texts are not on this machine")
def test_real_speeches_in_latin_1_are_rejected_and_counted(
    folder_config: Configure, tmp_path: Path
) -> None:
    files = sorted((DATA / "state_union").rglob("*.txt"))
    undecodable = 0
    for file in files:
        try:
            file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            undecodable += 1
    assert undecodable
    config = folder_config(DATA / "state_union")
    config = replace(
        config,
        gates=replace(config.gates, min_lines=1, max_line_length=10**6),
        split=SplitConfig(train=0.5, validation=0.25, test=0.25),
    )
    metrics = curate(config, tmp_path / "out")
    assert metrics["rejected/encoding"] == undecodable
    assert metrics["documents_out"] > 0
