"""--device of all commands that run a packed model: what is not there is refused before loading."""

from pathlib import Path

import pytest
import torch

from trilith.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "bench"])
@pytest.mark.parametrize(
    ("device", "text"),
    [("cuda", "no CUDA device; torch"), ("cuda:3", "no CUDA device; torch"), ("gpu", "not known")],
)
def test_a_device_that_is_not_there_is_refused_before_the_file_is_read(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    device: str,
    text: str,
) -> None:
    if command == "serve":
        pytest.importorskip("uvicorn", reason="needs the extra serve")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    # Read first, the file would be what is missing.
    assert main([command, str(tmp_path / "none.safetensors"), "--device", device]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert text in captured.err and "none.safetensors" not in captured.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_speed_is_measured_on_the_device_that_is_named(
    capsys: Capture, packed_file: Path
) -> None:
    options = ["--decode-tokens", "3", "--repeats", "2", "--prompt-tokens", "5", "--device", "cuda"]
    assert main(["bench", str(packed_file), *options]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out
