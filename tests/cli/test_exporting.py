"""`trilith export`, from arguments to files, errors and exit codes."""

import hashlib
import json
from pathlib import Path

import pytest

from trilith.cli import main

Capture = pytest.CaptureFixture[str]


def _run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _need(package: str) -> None:
    pytest.importorskip(package, reason="the extra `export` is not installed")


def test_a_folder_for_transformers_is_written(
    capsys: Capture, packed_file: Path, tmp_path: Path
) -> None:
    _need("tokenizers")
    metrics = tmp_path / "metrics.json"
    measured = {"toy": hashlib.sha256(packed_file.read_bytes()).hexdigest()}
    content = {"models": {"toy": {"perplexity": 12.5}}, "packed_sha256": measured}
    metrics.write_text(json.dumps(content))
    out = tmp_path / "out"
    options = ("--to", "huggingface", "--out", out, "--metrics", metrics)
    code, printed, err = _run(capsys, packed_file, *options)
    assert (code, err) == (0, "") and "weights in float32" in printed
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"} < names
    assert "12.5" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / "README.md").read_text()
    assert _run(capsys, packed_file, *options)[0] == 1
    code, printed, _ = _run(capsys, packed_file, *options, "--type", "float16", "--force")
    assert code == 0 and "weights in float16" in printed


def test_what_gguf_cannot_say_is_one_clear_line(
    capsys: Capture, packed_file: Path, tmp_path: Path
) -> None:
    _need("gguf")
    out = tmp_path / "toy.gguf"
    code, printed, err = _run(capsys, packed_file, "--to", "gguf", "--out", out)
    assert (code, printed) == (1, "")
    assert err.count("\n") == 1 and "a head of its own" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "options", "text"),
    [
        ("gguf", ["--to", "gguf", "--out", "a.bin"], "must be a file that ends with .gguf"),
        ("gguf", ["--to", "gguf", "--out", "a.gguf", "--type", "q4_0"], "no type of gguf"),
        ("gguf", ["--to", "gguf", "--out", "a.gguf", "--metrics", "x"], "--metrics has no effect"),
        ("tokenizers", ["--to", "huggingface", "--out", "a", "--type", "f16"], "no type of hug"),
        ("tokenizers", ["--to", "huggingface", "--out", ".", "--force"], "no model's folder"),
        ("tokenizers", ["--to", "huggingface", "--out", "a", "--metrics", "x"], "x does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_clear_line(
    capsys: Capture,
    packed_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    options: list[str],
    text: str,
) -> None:
    _need(package)
    monkeypatch.chdir(tmp_path)
    code, printed, err = _run(capsys, packed_file, *options)
    assert (code, printed) == (1, "")
    assert err.count("\n") == 1 and text in err
    assert list(tmp_path.iterdir()) == []
