"""A folder whose tokenizer is a tokenizer.json gives the ids and texts of its own libraries."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from tests.imports.making import drawn, sentencepiece_model, write_huggingface
from tests.imports.making_json import END, TURN, byte_level, meta_space, write_tokenizer
from tests.tokens.test_tokenizer import ODD_TEXTS, random_text
from tokenizers import models, normalizers, pre_tokenizers

from trilith.imports import open_source
from trilith.tokens import StreamDecoder, Tokenizer, TokenizerConfig, open_split
from trilith.tokens.tokenization import tokenize_corpus

ROWS = 352
STAND_INS = ("\0", "\1", "\2", "\3")


def folder_with(path: Path, tokenizer: Any, rows: int = ROWS, **named: str | None) -> Path:
    """Write a model whose embedding has so many rows, with a tokenizer.json alone."""
    shape, weights = drawn(vocab_size=rows)
    folder = write_huggingface(path, weights, shape=shape)
    (folder / "tokenizer.model").unlink()
    write_tokenizer(folder, tokenizer, **named)
    return folder


def opened(folder: Path) -> Tokenizer:
    content = open_source(folder).tokenizer
    assert content is not None
    return Tokenizer.from_bytes(content)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    every = [*ODD_TEXTS, *(random_text(rng) for _ in range(400)), "<tool_call>a caf\u00e9 ! b"]
    return [text for text in every if not any(byte in text for byte in STAND_INS)]


@pytest.mark.parametrize("kind", ["bytes", "bytes, composed", "U+2581"])
def test_ids_and_texts_are_those_of_transformers(
    tmp_path: Path, texts: list[str], kind: str
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    if kind == "U+2581":
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        folder = folder_with(tmp_path / "small", meta_space(), **names)
    else:
        composed = normalizers.NFC() if kind == "bytes, composed" else None
        folder = folder_with(tmp_path / "small", byte_level(normalizer=composed), eos_token=END)
    tokenizer = opened(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in texts:
        ids = tokenizer.encode(text)
        # Names of marks in a text are text, which transformers has to be told.
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
        if kind == "bytes":
            assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch(texts, num_threads=2) == tokenizer.encode_batch(texts)


def test_a_stream_is_what_decode_gives_and_marks_are_never_found_in_a_text(
    tmp_path: Path, texts: list[str]
) -> None:
    tokenizer = opened(folder_with(tmp_path / "small", byte_level(), eos_token=END))
    for text in [*texts, "\0a\1\2b\3", f"{END}{TURN}"]:
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids.values())
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)
    assert tokenizer.decode(tokenizer.encode("\0a\1\2b\3")) == "\ufffda\ufffd\ufffdb\ufffd"
    rng = random.Random(1)
    for _ in range(100):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


def test_a_mark_that_merges_or_added_tokens_find_is_spelled_in_bytes(tmp_path: Path) -> None:
    content = json.loads(byte_level().to_str())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    # "of", which text is full of, ends documents; so does a token that is not called special.
    vocabulary["of"] = len(vocabulary) + 10
    merges.append(["o", "f"])
    tool = next(t for t in content["added_tokens"] if t["content"] == "<tool_call>")
    tool["special"] = False
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    names = {"eos_token": "of", "pad_token": "<tool_call>"}
    found = opened(folder_with(tmp_path / "small", tokenizer, **names))
    assert found.piece(found.eos_id) == "of"
    ids = found.encode("of<tool_call>of")
    assert not {found.eos_id, found.pad_id} & set(ids)
    assert found.decode(ids) == "of<tool_call>of"
    assert found.decode([found.eos_id, found.pad_id]) == ""


def numbers(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("named", "config", "generation", "expected"),
    [
        # Names come first, then config.json, then generation_config.json.
        ({"eos_token": TURN, "bos_token": END}, {"eos_token_id": 3}, {}, (END, TURN, None)),
        ({"eos_token": TURN}, {"bos_token_id": 290}, {"bos_token_id": 3}, (END, TURN, None)),
        ({}, {"eos_token_id": [291, 290]}, {"pad_token_id": 290}, (TURN, TURN, END)),
        ({}, {}, {"eos_token_id": 290}, (END, END, None)),
        ({"eos_token": {"content": TURN}, "pad_token": END}, {}, {}, (TURN, TURN, END)),
    ],
    ids=str,
)
def test_marks_are_those_that_the_files_beside_it_name(
    tmp_path: Path,
    named: dict[str, Any],
    config: dict[str, Any],
    generation: dict[str, Any],
    expected: tuple[str, str, str | None],
) -> None:
    folder = folder_with(tmp_path / "small", byte_level(), **named)
    numbers(folder, "config.json", **config)
    numbers(folder, "generation_config.json", **generation)
    tokenizer = opened(folder)
    begin, end, padding = expected
    assert tokenizer.piece(tokenizer.bos_id) == begin
    assert tokenizer.piece(tokenizer.eos_id) == end
    # The pieces of bytes 0 to 3, as byte-level BPE writes them.
    stand_ins = [tokenizer.pad_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.end_id]
    pieces = [tokenizer.piece(token) for token in stand_ins]
    assert pieces == [padding or "\u0100", "\u0101", "\u0102", "\u0103"]
    assert tokenizer.unk_id is None and "<unk>" not in tokenizer.special_ids
    assert tokenizer.is_imported


def test_rows_beyond_the_pieces_stand_for_nothing(tmp_path: Path) -> None:
    tokenizer = opened(folder_with(tmp_path / "small", byte_level(), eos_token=END))
    assert tokenizer.vocab_size == ROWS
    assert tokenizer.decode([*tokenizer.encode("a"), ROWS - 1, *tokenizer.encode("b")]) == "ab"
    with pytest.raises(ValueError, match=r"id 352 is not in 0\.\.351"):
        tokenizer.decode([ROWS])


def test_fewer_rows_than_pieces_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "small", byte_level(), rows=293, eos_token=END)
    with pytest.raises(ValueError, match="ids up to 293 for an embedding of 293 rows"):
        open_source(folder)


def test_a_tokenizer_model_comes_before_a_tokenizer_json(tmp_path: Path) -> None:
    """TinyLlama-1.1B has both."""
    folder = write_huggingface(tmp_path / "small", drawn()[1])
    write_tokenizer(folder, byte_level(), eos_token=END)
    assert open_source(folder).tokenizer == (folder / "tokenizer.model").read_bytes()
    given = tmp_path / "other"
    write_tokenizer(given, byte_level(), eos_token=END)
    source = open_source(folder, tokenizer=given / "tokenizer.json")
    assert Tokenizer(source.tokenizer or b"").tokenizer_json is not None


def test_it_goes_through_the_stage_tokenize(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(
        open_source(folder_with(tmp_path / "small", byte_level(), eos_token=END)).tokenizer or b""
    )
    splits = ("train", "validation", "test")
    rows = [
        {"id": f"{n:064x}", "text": f"A red ball, number {n}.\n", "split": splits[n % 3]}
        for n in range(9)
    ]
    documents = tmp_path / "documents.parquet"
    pq.write_table(pa.Table.from_pylist(rows), documents)
    config = TokenizerConfig(ROWS, None, None, None, None, 2, str(path))
    tokenize_corpus(config, documents=documents, out_dir=tmp_path / "tokens")
    shard = open_split(tmp_path / "tokens", "test")
    tokenizer = Tokenizer.load(tmp_path / "tokens/tokenizer.model")
    first = shard.document(0).tolist()
    assert first[0] == first[-1] == tokenizer.eos_id
    assert tokenizer.decode(first) == "A red ball, number 2.\n"


def _change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def _change_model(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(changes)


def _without_byte(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["other"] = content["model"]["vocab"].pop("\u0107")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_change_model(dropout=0.1), r"gives other ids each time \(dropout=0.1\)"),
        (_change_model(end_of_word_suffix="</w>"), "marks the parts of a word"),
        (_change(decoder=None), "decodes with nothing; only byte-level"),
        (_change(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "WordPiece"),
        (_change(pre_tokenizer=None), "decodes bytes that it never makes"),
        (_without_byte, "has no piece for byte 7, so not every text fits"),
        (_change(model={"type": "BPE"}), "no tokenizer.json with a vocabulary"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], text: str
) -> None:
    folder = folder_with(tmp_path / "small", byte_level(), eos_token=END)
    content = json.loads((folder / "tokenizer.json").read_text())
    damage(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        open_source(folder)


def test_a_model_of_words_is_refused(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, END: 1}, unk_token=END))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="is a WordLevel model"):
        open_source(folder_with(tmp_path / "small", words, eos_token=END))


def test_marks_that_are_missing_or_unknown_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "none", byte_level())
    with pytest.raises(ValueError, match=r"no eos_token in tokenizer_config\.json and no"):
        open_source(folder)
    numbers(folder, "generation_config.json", eos_token_id=340)
    with pytest.raises(ValueError, match="has no piece for </s>=340"):
        open_source(folder)
    other = folder_with(tmp_path / "other", byte_level(), eos_token="</s>")
    with pytest.raises(ValueError, match=r"says eos_token=.</s>., which its tokenizer\.json does"):
        open_source(other)


def test_a_tokenizer_json_without_its_marks_is_no_tokenizer_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    byte_level().save(str(path))
    with pytest.raises(ValueError, match="does not say which ids begin and end a text"):
        Tokenizer.load(path)


def test_what_import_made_of_it_can_be_given_again(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "small", byte_level(), eos_token=END)
    content = open_source(folder).tokenizer or b""
    shutil.rmtree(tmp_path / "small")
    other = write_huggingface(tmp_path / "other", drawn(vocab_size=ROWS)[1])
    (tmp_path / "tokenizer.model").write_bytes(content)
    numbers(other, "config.json", vocab_size=ROWS)
    source = open_source(other, tokenizer=tmp_path / "tokenizer.model")
    assert source.tokenizer == content
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    with pytest.raises(ValueError, match="the embedding has 352 rows and the tokenizer 300 ids"):
        open_source(other, tokenizer=tmp_path / "tokenizer.model")
