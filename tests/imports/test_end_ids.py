"""All ids that end a text survive: from a folder to a packed file and back, for both tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.imports.making import TEXT, sentencepiece_model
from tests.imports.making_ends import KINDS, Kind, packed, tell, tokenizer_in, write_folder
from tests.imports.making_json import END, TURN, byte_level, write_tokenizer

from trilith.cli import main
from trilith.exports.huggingface import write_huggingface
from trilith.imports import open_source
from trilith.packed import read_packed
from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer

# Of the mark that each tokenizer itself knows.
OWN_END = {"tokenizer.json": 290, "tokenizer.model": 2}


def opened(folder: Path) -> Tokenizer:
    content = open_source(folder).tokenizer
    assert content is not None
    return Tokenizer.from_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("config", "generation", "more"),
    [
        ([291, 280], None, (291, 280)),
        ([291, 280], [281, 282, 283], (281, 282, 283)),
        (291, 282, (282,)),
        ([291], {}, (291,)),
        (None, [280, 280, 281], (280, 281)),
        (None, None, ()),
    ],
    ids=str,
)
def test_ends_are_those_of_generation_config_before_config_and_the_own_mark_is_first(
    tmp_path: Path, kind: Kind, config: Any, generation: Any, more: tuple[int, ...]
) -> None:
    folder = write_folder(tmp_path / "small", kind)
    tell(folder, "config.json", eos_token_id=config)
    if generation is not None:
        ids = {} if generation == {} else {"eos_token_id": generation}
        tell(folder, "generation_config.json", **ids)
    tokenizer = opened(folder)
    assert tokenizer.stop_ids == (OWN_END[kind], *more)
    assert tokenizer.eos_id == OWN_END[kind]
    named = [token for name, token in tokenizer.special_ids.items() if name.startswith("</s>")]
    assert named == [OWN_END[kind], *more]


def test_without_a_named_end_the_first_number_is_the_mark_of_a_document(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "small", "tokenizer.json")
    write_tokenizer(folder, byte_level())
    tell(folder, "config.json", eos_token_id=290)
    tell(folder, "generation_config.json", eos_token_id=[291, 290])
    tokenizer = opened(folder)
    assert (tokenizer.eos_id, tokenizer.bos_id) == (291, 291)
    assert tokenizer.stop_ids == (291, 290)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_ids_stay_as_they_are(tmp_path: Path, kind: Kind) -> None:
    folder = write_folder(tmp_path / "small", kind)
    before = opened(folder)
    # Letters, a line break, a mark: some models end a text at such ids.
    ends = [*before.encode("a\n"), 291]
    tell(folder, "generation_config.json", eos_token_id=ends)
    after = opened(folder)
    assert set(after.stop_ids) == {OWN_END[kind], *ends}
    assert after.sha256 != before.sha256
    for text in (TEXT, f"a{TURN}{END}\n", "caf\u00e9 !"):
        assert after.encode(text) == before.encode(text)
        assert after.decode(before.encode(text)) == before.decode(before.encode(text))


def test_an_added_token_that_ends_a_text_is_never_found_in_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "small", "tokenizer.json")
    # Added, and not called special.
    call = next(
        token["id"]
        for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        if token["content"] == "<tool_call>" and not token["special"]
    )
    assert call in opened(folder).encode("<tool_call>")
    tell(folder, "generation_config.json", eos_token_id=[call])
    tokenizer = opened(folder)
    assert call not in tokenizer.encode("<tool_call>")
    assert tokenizer.decode(tokenizer.encode("<tool_call>")) == "<tool_call>"


@pytest.mark.parametrize("kind", KINDS)
def test_models_with_one_end_have_the_bytes_that_they_always_had(
    tmp_path: Path, kind: Kind
) -> None:
    folder = write_folder(tmp_path / "small", kind)
    tell(folder, "config.json", eos_token_id=OWN_END[kind])
    tell(folder, "generation_config.json", eos_token_id=[OWN_END[kind]])
    if kind == "tokenizer.json":
        line = (
            '{"trilith_tokenizer":{"bos":null,"eos":290,"pad":null,"unk":null,"vocab_size":352}}\n'
        )
        spec = json.loads((folder / "tokenizer.json").read_text())
        whole = line + json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
        expected = whole.encode()
    else:
        expected = sentencepiece_model()
    assert open_source(folder).tokenizer == expected
    assert _version(packed(folder)) == 2


def _version(file: Path) -> int:
    with safe_open(file, framework="pt") as content:
        return json.loads(content.metadata()["trilith"])["version"]


@pytest.mark.parametrize("kind", KINDS)
def test_ends_go_to_hugging_face_and_come_back(
    tmp_path: Path, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "small", kind)
    project_file = (folder / kind).read_bytes()
    tell(folder, "generation_config.json", eos_token_id=[291, OWN_END[kind], 280])
    file = packed(folder)
    ends = "</s>2=291, </s>3=280"
    assert ends in capsys.readouterr().out
    assert main(["info", str(file)]) == 0
    assert ends in capsys.readouterr().out
    # An older program is told to be upgraded.
    assert _version(file) == 3
    assert tokenizer_in(file).stop_ids == (OWN_END[kind], 291, 280)
    out = tmp_path / "back"
    write_huggingface(read_packed(file), out, weights="float32", figures=None)
    expected = [OWN_END[kind], 291, 280]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == expected
    if kind == "tokenizer.model":
        assert (out / kind).read_bytes() == project_file
    else:
        assert json.loads((out / kind).read_text()) == json.loads(project_file)
    assert open_source(out).tokenizer == read_packed(file).tokenizer_bytes


def test_transformers_reads_the_ends_of_an_export(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    folder = write_folder(tmp_path / "small", "tokenizer.json")
    tell(folder, "generation_config.json", eos_token_id=[291, 280])
    out = tmp_path / "back"
    write_huggingface(read_packed(packed(folder)), out, weights="float32", figures=None)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [290, 291, 280]


def test_our_own_marks_are_not_told_twice(tmp_path: Path) -> None:
    """An export of ours names both ends of its chats, and its tokenizer knows them."""
    config = TokenizerConfig(300, 1.0, 8, ("\n",), 10**6, 1)
    content = train_tokenizer([TEXT] * 10, config).model_bytes
    folder = write_folder(tmp_path / "small", "tokenizer.model")
    (folder / "tokenizer.model").write_bytes(content)
    tell(folder, "config.json", eos_token_id=[2, 6])
    assert open_source(folder).tokenizer == content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([280, 400], "says that id 400 ends a text, and the tokenizer has no such piece"),
        ([280, -1], r"says eos_token_id=\[280, -1\], expected an id from 0 on or a list"),
        (["</s>"], r"says eos_token_id=\['</s>'\], expected an id from 0 on or a list"),
        (True, "says eos_token_id=True, expected an id"),
    ],
    ids=str,
)
def test_an_end_outside_the_vocabulary_is_refused_and_no_weight_is_read(
    tmp_path: Path, kind: Kind, file: str, ids: Any, text: str
) -> None:
    folder = write_folder(tmp_path / "small", kind)
    tell(folder, file, eos_token_id=ids)
    # The header alone is left.
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header] + bytes([0xFF]) * (len(content) - header))
    with pytest.raises(ValueError, match=rf"{file.replace('.', '[.]')} {text}"):
        open_source(folder)


def test_a_row_without_a_piece_ends_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "small", "tokenizer.json")
    tell(folder, "generation_config.json", eos_token_id=[291, 351])
    with pytest.raises(ValueError, match="says that id 351 ends a text, and the tokenizer has no"):
        open_source(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", ["[280,291]", "[]", "7", '["a"]', "[%d,%d]"])
def test_damaged_end_marks_are_refused(tmp_path: Path, kind: Kind, ids: str) -> None:
    folder = write_folder(tmp_path / "small", kind)
    tell(folder, "generation_config.json", eos_token_id=[291])
    content = open_source(folder).tokenizer or b""
    own = OWN_END[kind]
    told = f"[{own},291]".encode()
    assert content.count(told) == 1
    # The own mark comes first, and no id twice.
    damaged = content.replace(told, (ids % (own, own) if "%" in ids else ids).encode())
    with pytest.raises(ValueError, match=r"the tokenizer is damaged: its end marks are"):
        Tokenizer.from_bytes(damaged)
    beyond = content.replace(told, f"[{own},9999]".encode())
    with pytest.raises(ValueError, match="has no piece for"):
        Tokenizer.from_bytes(beyond)
