"""GGUF names the ends of a document, a turn and a message: written, and read back."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.exports.conftest import WIDE, pack
from tests.imports.making import TEXT, sentencepiece_model
from tests.imports.making_json import TURN, byte_level, write_tokenizer

from trilith.imports import open_source
from trilith.model import build_model
from trilith.packed import PackedFile
from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer

gguf = pytest.importorskip("gguf", reason="the extra `export` is not installed")
from trilith.exports.gguf_file import write_gguf  # noqa: E402

SHAPE = replace(WIDE, num_layers=1)


def ending_at(folder: Path, *more: int) -> PackedFile:
    """Pack a model whose tokenizer, as Llama 2's, ends a text at 2, and at more ids."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(sentencepiece_model()).stopping_at(more, origin="the test")
    model = build_model(SHAPE, None)
    return pack(model, folder / "wide.safetensors", tokenizer=tokenizer.model_bytes)


def change(path: Path, end: str, token: int) -> None:
    """Change what a GGUF file says of one end."""
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields[f"tokenizer.ggml.{end}_token_id"]
    field.parts[field.data[0]][0] = token
    reader.data.flush()


@pytest.mark.parametrize("more", [(), (270,), (280, 270)], ids=str)
def test_ends_are_eos_eot_and_eom_and_come_back(tmp_path: Path, more: tuple[int, ...]) -> None:
    file = ending_at(tmp_path, *more)
    path = tmp_path / "wide.gguf"
    write_gguf(file, path, weights="f16")
    fields = gguf.GGUFReader(path).fields
    found = [fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    assert [field.contents() for field in found if field is not None] == [2, *more]
    again = Tokenizer(open_source(path).tokenizer or b"")
    assert again.stop_ids == (2, *more)
    assert again.encode(TEXT) == Tokenizer(file.tokenizer_bytes).encode(TEXT)


def test_more_ends_than_gguf_names_are_refused(tmp_path: Path) -> None:
    file = ending_at(tmp_path, 280, 270, 290)
    with pytest.raises(ValueError, match=r"wide\.safetensors ends a text at 4 ids, and GGUF names"):
        write_gguf(file, tmp_path / "wide.gguf", weights="f16")
    assert not (tmp_path / "wide.gguf").exists()


def test_our_own_end_of_an_answer_stays_what_it_is(tmp_path: Path) -> None:
    config = TokenizerConfig(300, 1.0, 8, ("\n",), 10**6, 1)
    content = train_tokenizer([TEXT] * 10, config).model_bytes
    file = pack(build_model(SHAPE, None), tmp_path / "own.safetensors", tokenizer=content)
    write_gguf(file, tmp_path / "own.gguf", weights="f16")
    eot = gguf.GGUFReader(tmp_path / "own.gguf").fields["tokenizer.ggml.eot_token_id"]
    assert eot.contents() == 6
    again = Tokenizer(open_source(tmp_path / "own.gguf").tokenizer or b"")
    assert (again.stop_ids, again.end_id) == ((2,), 6)


def test_an_end_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    write_gguf(ending_at(tmp_path, 270, 280), path, weights="f16")
    change(path, "eom", 300)
    with pytest.raises(ValueError, match=r"wide\.gguf says that id 300 ends a text, and the token"):
        open_source(path)


def test_the_ends_of_the_file_count_with_a_tokenizer_that_is_given_too(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    write_gguf(ending_at(tmp_path, 270), path, weights="f16")
    write_tokenizer(tmp_path / "given", byte_level(), eos_token=TURN)
    # The embedding has 300 rows.
    source = open_source(path, tokenizer=tmp_path / "given/tokenizer.json")
    found = Tokenizer(source.tokenizer or b"")
    assert found.stop_ids == (291, 2, 270)
