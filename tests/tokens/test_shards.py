"""Shards hold every document once, and a reader refuses whatever is not what was written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trilith.tokens import Tokenizer, open_split
from trilith.tokens.shards import token_dtype, write_shard

Row = tuple[str, str, str]


def edit_manifest(tokens_dir: Path, change: Callable[[dict], None]) -> None:
    path = tokens_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_each_document_is_there_once_in_the_order_of_its_id(
    tokens_dir: Path, rows: list[Row]
) -> None:
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    for split in ("train", "validation", "test"):
        shard = open_split(tokens_dir, split)
        expected = [text for _, text, own in sorted(rows) if own == split]
        assert shard.num_documents == len(expected)
        assert shard.num_bytes == sum(len(text.encode()) for text in expected)
        assert shard.tokens.dtype == np.uint16
        for index, text in enumerate(expected):
            ids = shard.document(index)
            assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            assert tokenizer.decode(ids[1:-1].tolist()) == text
        assert shard.offsets[0] == 0
        assert shard.offsets[-1] == len(shard.tokens)
        assert (shard.vocab_size, shard.tokenizer_sha256) == (400, tokenizer.sha256)


def test_the_id_table_is_written_out(tokens_dir: Path) -> None:
    table = json.loads((tokens_dir / "ids.json").read_text())
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    assert table["vocab_size"] == tokenizer.vocab_size
    assert table["tokenizer_sha256"] == tokenizer.sha256
    assert table["ids"] == {tokenizer.piece(token): token for token in range(7)}


def test_the_files_are_little_endian_whatever_the_machine(tmp_path: Path) -> None:
    for vocab_size, width in ((1 << 16, 2), ((1 << 16) + 1, 4)):
        split = write_shard(
            tmp_path,
            split="test",
            batches=[[[513, 7], []], [[65_535]]],
            num_bytes=9,
            vocab_size=vocab_size,
            marks=(1, 2),
        )
        expected = [1, 513, 7, 2, 1, 2, 1, 65_535, 2]
        raw = (tmp_path / "test.bin").read_bytes()
        assert raw == b"".join(token.to_bytes(width, "little") for token in expected)
        raw = (tmp_path / "test.idx").read_bytes()
        assert raw == b"".join(offset.to_bytes(8, "little") for offset in (0, 4, 6, 9))
        assert (split.tokens, split.documents, split.bytes) == (9, 3, 9)
        assert token_dtype(vocab_size).itemsize == width


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "manifest.json", "tokenizer.model"])
def test_a_missing_file_is_named_with_the_stage(tokens_dir: Path, name: str) -> None:
    (tokens_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} does not exist; tokenize makes it"):
        open_split(tokens_dir, "train")


@pytest.mark.parametrize("name", ["train.bin", "train.idx"])
def test_a_cut_file_is_refused(tokens_dir: Path, name: str) -> None:
    path = tokens_dir / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes, expected \d+.*run tokenize"):
        open_split(tokens_dir, "train")


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "tokenizer.model"])
def test_one_flipped_bit_is_refused(tokens_dir: Path, name: str) -> None:
    path = tokens_dir / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name} is .*run tokenize"):
        open_split(tokens_dir, "train")


def test_damage_to_another_split_does_not_matter(tokens_dir: Path) -> None:
    (tokens_dir / "test.bin").write_bytes(b"")
    assert open_split(tokens_dir, "train").num_documents > 0


@pytest.mark.parametrize("version", [2, None, "1"])
def test_another_version_is_refused(tokens_dir: Path, version: object) -> None:
    edit_manifest(tokens_dir, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(ValueError, match=r"manifest\.json has format_version .*expected 1"):
        open_split(tokens_dir, "train")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("dtype"),
        lambda manifest: manifest.update(extra=1),
        lambda manifest: manifest["splits"]["train"].pop("bytes"),
    ],
)
def test_a_manifest_with_other_keys_is_refused(
    tokens_dir: Path, change: Callable[[dict], None]
) -> None:
    edit_manifest(tokens_dir, change)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_split(tokens_dir, "train")


def test_a_manifest_that_is_not_json_is_refused(tokens_dir: Path) -> None:
    (tokens_dir / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*run tokenize"):
        open_split(tokens_dir, "train")


def test_another_id_table_is_refused(tokens_dir: Path) -> None:
    path = tokens_dir / "ids.json"
    path.write_text(path.read_text().replace('"<pad>": 3', '"<pad>": 4'))
    with pytest.raises(ValueError, match=r"ids\.json is not the id table"):
        open_split(tokens_dir, "train")


def test_an_unknown_split_is_an_error_that_lists_the_known(tokens_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"'dev' is none of \['test', 'train', 'validation'\]"):
        open_split(tokens_dir, "dev")
