"""`trilith pack`: any checkpoint becomes the file that the stage `pack` would make of it."""

from pathlib import Path

import pytest
import torch
from tests.imports.making import SHAPE, drawn, sentencepiece_model, write_huggingface, write_llama2c

from trilith.cli import main
from trilith.files import sha256
from trilith.imports import open_source
from trilith.model import Checkpoint, build_model, load_checkpoint, save_checkpoint
from trilith.packed import PackConfig, load_model, measure, read_packed, round_to_stored
from trilith.packed.shelf import pack_checkpoint
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer

Capture = pytest.CaptureFixture[str]
TERNARY = QuantConfig("ternary", "absmean", "row", None, 8)
IDS = torch.arange(40).view(2, 20)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose choice is base 3 and int8."""
    for path, text in {
        "conf/config.yaml": 'defaults: [{pack: "???"}, _self_]\n',
        "conf/model/any.yaml": "name: any\n",
        "conf/pack/smallest.yaml": "codec: smallest\nembedding: int8\n",
        "conf/pack/bits2.yaml": "codec: bits2\nembedding: int8\n",
        "params.yaml": "pack: smallest\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A ternary checkpoint as pretrain leaves it: its tokenizer lies elsewhere."""
    torch.manual_seed(0)
    tokenizer = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(tokenizer)
    provenance = {"name": "small", "num_steps": 3}
    found = Tokenizer.from_bytes(tokenizer).sha256
    model = build_model(SHAPE, TERNARY)
    save_checkpoint(Checkpoint(model, TERNARY, found, provenance), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def _run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = main(["pack", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@torch.no_grad()
def test_a_checkpoint_becomes_the_file_that_the_stage_makes(
    capsys: Capture, project: Path, checkpoint: Path
) -> None:
    options = ("--out", project / "out.safetensors", "--tokenizer", project / "tokenizer.model")
    code, printed, err = _run(capsys, checkpoint, *options)
    assert (code, err) == (0, "")
    assert "wrote" in printed and "bits per projection weight" in printed
    pack_checkpoint(
        load_checkpoint(checkpoint, made_by="the test"),
        path=project / "expected.safetensors",
        config=PackConfig("smallest", "int8"),
        tokenizer=Tokenizer.load(project / "tokenizer.model"),
        proof_tokens=IDS,
    )
    assert sha256(project / "out.safetensors") == sha256(project / "expected.safetensors")


@pytest.mark.parametrize(
    ("choices", "codec", "dtype"),
    [
        ([], "base3", "int8"),
        (["--codec", "bits2"], "bits2", "int8"),
        (["--codec", "bits2", "--embedding", "bf16"], "bits2", "bfloat16"),
    ],
)
def test_choices_of_conf_decide(
    capsys: Capture, project: Path, checkpoint: Path, choices: list[str], codec: str, dtype: str
) -> None:
    out = project / "out.safetensors"
    options = ("--out", out, "--tokenizer", project / "tokenizer.model")
    assert _run(capsys, checkpoint, *options, *choices)[0] == 0
    tensors = read_packed(out).manifest.tensors
    assert {entry.codes.codec for entry in tensors.values() if entry.codes} == {codec}
    assert tensors["embedding.weight"].dtype == dtype


@pytest.mark.parametrize("kind", ["huggingface", "llama2c"])
@torch.no_grad()
def test_dense_models_of_other_projects_stay_in_bfloat16(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shape, weights = drawn()
    write = write_huggingface if kind == "huggingface" else write_llama2c
    path = write(tmp_path / "small", weights, shape=shape)
    out = tmp_path / "out.safetensors"
    code, printed, err = _run(capsys, path, "--out", out, "--name", "tiny")
    assert (code, err) == (0, "")
    file = read_packed(out)
    assert file.manifest.model.name == "tiny"
    assert list(file.manifest.provenance["imported"]["weights"])
    assert f"{file.path.stat().st_size:,}" in printed
    assert sum(measure(file).bytes_by_part.values()) == out.stat().st_size
    model = open_source(path).load().model
    round_to_stored(model, config=PackConfig("smallest", "bf16"))
    assert torch.equal(load_model(out)(IDS), model(IDS))


@torch.no_grad()
def test_a_packed_file_is_packed_again_with_another_codec(
    capsys: Capture, project: Path, checkpoint: Path
) -> None:
    one, two = project / "one.safetensors", project / "two.safetensors"
    tokenizer = ("--tokenizer", project / "tokenizer.model")
    assert _run(capsys, checkpoint, "--embedding", "bf16", "--out", one, *tokenizer)[0] == 0
    assert _run(capsys, one, "--codec", "bits2", "--embedding", "bf16", "--out", two)[0] == 0
    assert torch.equal(load_model(one)(IDS), load_model(two)(IDS))
    assert read_packed(one).manifest.provenance == read_packed(two).manifest.provenance


def test_what_is_there_is_replaced_only_with_force(
    capsys: Capture, project: Path, checkpoint: Path
) -> None:
    out = project / "out.safetensors"
    out.write_text("dear")
    options = ("--out", out, "--tokenizer", project / "tokenizer.model")
    code, printed, err = _run(capsys, checkpoint, *options)
    assert (code, printed) == (1, "") and "replace it with --force" in err
    assert out.read_text() == "dear"
    assert _run(capsys, checkpoint, *options, "--force")[0] == 0
    read_packed(out)
    code, _, err = _run(capsys, out, "--out", out, "--force")
    assert code == 1 and "holds what is read" in err


def test_after_an_error_nothing_is_left(capsys: Capture, tmp_path: Path) -> None:
    shape, weights = drawn()
    weights["0.v_proj"][1, 1] = torch.nan
    path = write_llama2c(tmp_path / "a", weights, shape=shape)
    code, _, err = _run(capsys, path, "--out", tmp_path / "out.safetensors")
    assert code == 1 and err.count("\n") == 1 and "not finite" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--out", "out.bin"], "must be a file that ends with .safetensors"),
        (["--out", "out.safetensors"], "comes without its tokenizer"),
        (["--codec", "zip", "--out", "out.safetensors", "--tokenizer"], "pack.codec='zip'"),
        (["--codec", "bits1", "--out", "out.safetensors", "--tokenizer"], "pack.codec=bits1"),
        (["--embedding", "f8", "--out", "out.safetensors", "--tokenizer"], "pack.embedding='f8'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_clear_line(
    capsys: Capture, project: Path, checkpoint: Path, arguments: list[str], text: str
) -> None:
    if arguments[-1] == "--tokenizer":
        arguments = [*arguments, str(project / "tokenizer.model")]
    code, _, err = _run(capsys, checkpoint, *arguments)
    assert code == 1 and err.count("\n") == 1
    assert text in err
    assert not (project / "out.safetensors").exists()


def test_a_dense_model_has_no_codec_to_choose(capsys: Capture, project: Path) -> None:
    path = write_llama2c(project / "a", drawn()[1])
    code, _, err = _run(capsys, path, "--codec", "bits2", "--out", project / "out.safetensors")
    assert code == 1 and "its projections stay in bfloat16, where --codec has no effect" in err


def test_without_a_project_both_choices_are_given(
    capsys: Capture, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.safetensors"
    options = ("--out", out, "--tokenizer", tmp_path / "tokenizer.model", "--codec", "bits2")
    code, _, err = _run(capsys, checkpoint, *options)
    assert code == 1 and "give --codec and --embedding" in err
    assert _run(capsys, checkpoint, *options, "--embedding", "int8")[0] == 0
    read_packed(out)


def test_another_tokenizer_than_in_training_is_refused(
    capsys: Capture, project: Path, checkpoint: Path
) -> None:
    other = project / "other.model"
    other.write_bytes(sentencepiece_model(310))
    options = ("--out", project / "out.safetensors", "--tokenizer", other)
    code, _, err = _run(capsys, checkpoint, *options)
    assert code == 1 and "was trained with another tokenizer" in err
