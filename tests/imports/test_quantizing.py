"""A dense folder put on a grid block by block: the file that packing the whole model makes."""

from pathlib import Path

import pytest
import torch
from tests.imports.making import drawn, write_huggingface

from trilith.cli import main
from trilith.imports import open_source, pack_on_grid
from trilith.model import ModelConfig, move_to_grid
from trilith.packed import PackConfig, load_model, read_packed, round_to_stored
from trilith.quant import QuantConfig
from trilith.runtime import Engine
from trilith.tokens import Tokenizer

IDS = torch.arange(40).view(2, 20)
COMPACT = PackConfig("smallest", "int3", "int4", 8)


@pytest.mark.parametrize("grid", ["ternary", "prime7", "planes"])
@torch.no_grad()
def test_it_is_the_model_with_fitted_row_scales(grid: str, tmp_path: Path) -> None:
    shape, weights = drawn()
    source = open_source(write_huggingface(tmp_path / "small", weights, shape=shape))
    quant = QuantConfig(grid, "least_squares", "row", None, 8)
    assert source.tokenizer is not None
    report = pack_on_grid(
        source,
        path=tmp_path / "out.safetensors",
        quant=quant,
        config=COMPACT,
        tokenizer=Tokenizer.from_bytes(source.tokenizer),
    )
    assert sum(report.bytes_by_part.values()) == report.path.stat().st_size
    expected = move_to_grid(source.load().model, quant).eval()
    round_to_stored(expected, config=COMPACT)
    assert torch.equal(load_model(report.path)(IDS), expected(IDS))
    assert read_packed(report.path).manifest.provenance["fitted"] == grid


def test_only_one_block_is_asked_for_at_a_time(tmp_path: Path) -> None:
    shape, weights = drawn()
    source = open_source(write_huggingface(tmp_path / "small", weights, shape=shape))
    parts = list(source.parts())
    assert len(parts) == 1 + source.model.num_layers
    whole = source.read()
    assert {name for part in parts for name in part} == set(whole)
    assert all(torch.equal(t, whole[name]) for part in parts for name, t in part.items())


@torch.no_grad()
def test_a_weight_that_is_not_finite_leaves_no_file(tmp_path: Path) -> None:
    shape, weights = drawn()
    weights["1.up_proj"][0, 0] = torch.nan
    source = open_source(write_huggingface(tmp_path / "small", weights, shape=shape))
    assert source.tokenizer is not None
    with pytest.raises(ValueError, match="holds a weight that is not finite"):
        pack_on_grid(
            source,
            path=tmp_path / "out.safetensors",
            quant=QuantConfig("ternary", "least_squares", "row", None, 8),
            config=COMPACT,
            tokenizer=Tokenizer.from_bytes(source.tokenizer),
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command_says_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape)
    out = tmp_path / "out.safetensors"
    options = ["--grid", "ternary", "--codec", "smallest", "--embedding", "int3", "--head", "int4"]
    assert main(["pack", str(folder), *options, "--group-size", "8", "--out", str(out)]) == 0
    assert "on grid ternary" in capsys.readouterr().out
    model: ModelConfig = Engine.load(out).config
    assert model.width == shape.width
    again = ["pack", str(out), "--grid", "ternary", *options[2:], "--group-size", "8"]
    assert main([*again, "--out", str(tmp_path / "two.safetensors")]) == 1
    assert "is on grid ternary already" in capsys.readouterr().err
