"""A file that lies about its tokenizer, with right hashes: every command that needs it says so."""

import hashlib
import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.toy_packed import pack_toy

from trilith.cli import main

Forge = Callable[[dict[str, Any]], None]


def _forged(source: Path, path: Path, forge: Forge) -> Path:
    """Copy a packed file with another manifest, whose hash is made right."""
    content = source.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    envelope = json.loads(header["__metadata__"]["trilith"])
    forge(envelope["manifest"])
    body = json.dumps(envelope["manifest"], sort_keys=True, separators=(",", ":"))
    envelope["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    header["__metadata__"]["trilith"] = json.dumps(envelope)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path


def _other_end(manifest: dict[str, Any]) -> None:
    manifest["special_ids"]["</s>"] = 7


def _no_end(manifest: dict[str, Any]) -> None:
    del manifest["special_ids"]["</s>"]


def _one_more(manifest: dict[str, Any]) -> None:
    manifest["special_ids"]["<tool>"] = 9


def _nothing(manifest: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize("command", ["verify", "generate", "chat", "serve"])
@pytest.mark.parametrize(
    ("forge", "text"),
    [
        (_other_end, "</s>: 7 for 2"),
        (_no_end, "</s>: None for 2"),
        (_one_more, "<tool>: 9 for None"),
    ],
)
def test_special_ids_that_are_not_the_tokenizers_are_refused(
    capsys: pytest.CaptureFixture[str],
    packed_file: Path,
    tmp_path: Path,
    forge: Forge,
    text: str,
    command: str,
) -> None:
    path = _forged(packed_file, tmp_path / "forged.safetensors", forge)
    assert main([command, str(path)]) == 1
    captured = capsys.readouterr()
    said = captured.out if command == "verify" else captured.err
    assert "forged.safetensors says special ids" in said and text in said
    assert captured.err.count("\n") == (0 if command == "verify" else 1)


def test_the_same_manifest_written_anew_is_no_forgery(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _forged(packed_file, tmp_path / "same.safetensors", _nothing)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    assert [main([command, str(path)]) for command in ("verify", "chat")] == [0, 0]


@pytest.mark.parametrize("command", ["verify", "generate"])
def test_a_model_with_more_tokens_than_its_tokenizer_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    path = pack_toy(tmp_path / "wide.safetensors", context=32, vocab_size=301)
    assert main([command, str(path)]) == 1
    captured = capsys.readouterr()
    assert "a model of 301 tokens and a tokenizer of 300" in captured.out + captured.err
