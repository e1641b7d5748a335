"""`trilith import`: it says what it read, and writes a folder that everything else understands."""

from pathlib import Path

import pytest
import torch
import yaml
from tests.imports.making import drawn, tokenizer_bin, write_huggingface, write_llama2c
from tests.imports.making import sentencepiece_model as train

from trilith.cli import main
from trilith.files import sha256
from trilith.model import ModelConfig, load_checkpoint
from trilith.tokens import Tokenizer

Capture = pytest.CaptureFixture[str]


def _run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = main(["import", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_hugging_face_folder_becomes_a_checkpoint(capsys: Capture, tmp_path: Path) -> None:
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape)
    (folder / "LICENSE").write_text("MIT License\n")
    out = tmp_path / "out"
    code, printed, err = _run(capsys, folder, "--out", out)
    assert (code, err) == (0, "")
    for text in ("format: Hugging Face", "model: small", "weights: float32", "num_kv_heads: 2"):
        assert text in printed
    assert f"parameters: {sum(tensor.numel() for tensor in weights.values()):,}" in printed
    assert "tokenizer: 300 ids" in printed and "licence: LICENSE: MIT License" in printed
    checkpoint = load_checkpoint(out, made_by="trilith import")
    assert torch.equal(checkpoint.model.head.weight, weights["lm_head"])
    assert checkpoint.tokenizer_sha256 == Tokenizer.load(out / "tokenizer.model").sha256
    assert ModelConfig(**yaml.safe_load((out / "model.yaml").read_text())) == shape
    origin = checkpoint.provenance["imported"]
    hashes = {"model.safetensors": sha256(folder / "model.safetensors")}
    assert origin == {"kind": "Hugging Face", "weights": hashes}
    assert str(tmp_path) not in (out / "config.json").read_text()


def test_a_name_and_a_tokenizer_can_be_given(capsys: Capture, tmp_path: Path) -> None:
    path = write_llama2c(tmp_path / "a", drawn()[1])
    (tmp_path / "a/tokenizer.bin").rename(tmp_path / "elsewhere.bin")
    out = tmp_path / "out"
    options = ("--out", out, "--name", "tiny", "--tokenizer", tmp_path / "elsewhere.bin")
    code, printed, _ = _run(capsys, path, *options)
    assert code == 0
    assert "model: tiny" in printed and "conf/model/tiny.yaml" in printed
    checkpoint = load_checkpoint(out, made_by="trilith import")
    assert checkpoint.model.config.name == checkpoint.provenance["name"] == "tiny"


def test_an_imported_folder_is_imported_again_under_another_name(
    capsys: Capture, tmp_path: Path
) -> None:
    path = write_llama2c(tmp_path / "a", drawn()[1])
    assert _run(capsys, path, "--out", tmp_path / "one")[0] == 0
    assert _run(capsys, tmp_path / "one", "--out", tmp_path / "two", "--name", "two")[0] == 0
    one, two = (load_checkpoint(tmp_path / name, made_by="import") for name in ("one", "two"))
    assert torch.equal(one.model.embedding.weight, two.model.embedding.weight)


@pytest.mark.parametrize("existing", ["file", "folder"])
def test_nothing_is_written_over(capsys: Capture, tmp_path: Path, existing: str) -> None:
    path = write_llama2c(tmp_path / "a", drawn()[1])
    out = tmp_path / "a" if existing == "folder" else path
    before = path.read_bytes()
    code, printed, err = _run(capsys, path, "--out", out)
    assert (code, printed) == (1, "")
    assert "is there already; give another place, or delete it" in err
    assert path.read_bytes() == before


def test_after_an_error_nothing_is_left(capsys: Capture, tmp_path: Path) -> None:
    shape, weights = drawn()
    weights["0.v_proj"][1, 1] = torch.nan
    path = write_llama2c(tmp_path / "a", weights, shape=shape)
    code, _, err = _run(capsys, path, "--out", tmp_path / "out")
    assert code == 1
    assert err.count("\n") == 1 and "not finite" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("name", ["../up", "Small", "", "a b"])
def test_a_name_that_fits_no_file_is_refused(capsys: Capture, tmp_path: Path, name: str) -> None:
    path = write_llama2c(tmp_path / "a", drawn()[1])
    code, _, err = _run(capsys, path, "--out", tmp_path / "out", "--name", name)
    assert code == 1 and "give another with --name" in err


def test_a_tokenizer_of_another_size_is_one_clear_line(capsys: Capture, tmp_path: Path) -> None:
    path = write_llama2c(tmp_path / "a", drawn()[1])
    (tmp_path / "other.bin").write_bytes(tokenizer_bin(train(310)))
    options = ("--out", tmp_path / "out", "--tokenizer", tmp_path / "other.bin")
    code, _, err = _run(capsys, path, *options)
    assert code == 1 and err.count("\n") == 1
    assert "the embedding has 300 rows and the tokenizer 310 ids" in err
