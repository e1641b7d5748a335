"""`trilith verify`: 0 for a whole file, 1 and every damage by name for any other."""

import re
from pathlib import Path

import pytest
from safetensors import safe_open

from trilith.cli import main

Capture = pytest.CaptureFixture[str]


def _run(capsys: Capture, path: Path) -> tuple[int, str, str]:
    code = main(["verify", str(path)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _damaged(source: Path, path: Path, *names: str) -> Path:
    """Copy a file and change the last byte of these tensors."""
    content = bytearray(source.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    with safe_open(source, framework="pt") as file:
        stored = [(name, file.get_tensor(name)) for name in file.offset_keys()]
    for name, tensor in stored:
        start += tensor.numel() * tensor.element_size()
        if name in names:
            content[start - 1] ^= 0x40
    path.write_bytes(content)
    return path


def test_a_whole_file_passes(capsys: Capture, packed_file: Path) -> None:
    code, out, err = _run(capsys, packed_file)
    assert (code, err) == (0, "")
    assert "is whole" in out and "damaged" not in out


def test_every_damaged_tensor_is_named(capsys: Capture, packed_file: Path, tmp_path: Path) -> None:
    names = ("blocks.0.mlp.up.codes", "norm.weight", "head.scale")
    path = _damaged(packed_file, tmp_path / "bad.safetensors", *names)
    code, out, err = _run(capsys, path)
    assert (code, err) == (1, "")
    assert [line for line in out.splitlines() if line.startswith("damaged:")] == [
        f"damaged: {path} has damaged bytes in {name} (sha256 differs); copy or pack the file again"
        for name in sorted(names)
    ]
    assert re.search(r"^  codes +8 +7$", out, re.MULTILINE)
    assert "is whole" not in out


def test_a_cut_file_and_an_edited_manifest_are_damage(
    capsys: Capture, packed_file: Path, tmp_path: Path
) -> None:
    content = packed_file.read_bytes()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content[:-9])
    code, out, _ = _run(capsys, path)
    assert code == 1 and "is cut off or damaged" in out
    path.write_bytes(content.replace(b'\\"num_heads\\":6', b'\\"num_heads\\":4'))
    code, out, _ = _run(capsys, path)
    assert code == 1 and "manifest that was changed after packing" in out


def test_a_missing_file_is_an_error(capsys: Capture, tmp_path: Path) -> None:
    code, out, err = _run(capsys, tmp_path / "none.safetensors")
    assert (code, out) == (1, "")
    assert "none.safetensors does not exist" in err
