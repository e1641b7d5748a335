"""Our own checkpoints and packed files as sources: the same weights, the same logits."""

import json
from pathlib import Path

import pytest
import torch
from tests.imports.making import SHAPE, sentencepiece_model

from trilith.imports import open_source
from trilith.model import Checkpoint, build_model, load_checkpoint, save_checkpoint
from trilith.packed import Attachments, PackConfig, TokenizerParts, load_model, write_packed
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer

QUANTS = {
    "dense": None,
    "row": QuantConfig("ternary", "least_squares", "row", None, 8),
    "tensor": QuantConfig("ternary", "absmean", "tensor", None, 8),
    "group": QuantConfig("prime7", "least_squares", "group", 8, 8),
    "float": QuantConfig("sign", "absmean", "row", None, None),
}
IDS = torch.arange(40).view(2, 20)


def packed(folder: Path, quant: QuantConfig | None) -> Path:
    """Pack a random model with a tokenizer."""
    torch.manual_seed(0)
    model = build_model(SHAPE, quant)
    tokenizer = Tokenizer.from_bytes(sentencepiece_model())
    parts = TokenizerParts(tokenizer.model_bytes, tokenizer.special_ids)
    path = folder / "packed.safetensors"
    config = PackConfig("smallest", "int8" if quant else "bf16")
    attachments = Attachments(parts, {"name": "small", "num_tokens_seen": 9, "num_steps": 3})
    write_packed(model, path=path, config=config, attachments=attachments, proof_tokens=IDS)
    return path


def test_a_checkpoint_from_before_biases_is_read(tmp_path: Path) -> None:
    model = build_model(SHAPE, None)
    save_checkpoint(Checkpoint(model, None, "0" * 64, {}), tmp_path / "old")
    content = json.loads((tmp_path / "old/config.json").read_text())
    assert content["model"].pop("qkv_bias") is False
    (tmp_path / "old/config.json").write_text(json.dumps(content))
    assert open_source(tmp_path / "old").load().model.config == SHAPE


@pytest.mark.parametrize("name", QUANTS)
@torch.no_grad()
def test_an_unpacked_model_computes_what_the_packed_one_does(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path, QUANTS[name])
    source = open_source(path)
    assert (source.model, source.provenance["num_tokens_seen"]) == (SHAPE, 9)
    checkpoint = source.load()
    assert (checkpoint.quant is None) == (name == "dense")
    assert torch.equal(checkpoint.model(IDS), load_model(path)(IDS))
    save_checkpoint(checkpoint, tmp_path / "again")
    again = load_checkpoint(tmp_path / "again", made_by="the test")
    assert torch.equal(again.model(IDS), checkpoint.model(IDS))


@pytest.mark.parametrize("name", QUANTS)
@torch.no_grad()
def test_a_checkpoint_is_its_own_source(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = build_model(SHAPE, QUANTS[name]).eval()
    save_checkpoint(Checkpoint(model, QUANTS[name], "f" * 64, {"name": "x"}), tmp_path / "x")
    source = open_source(tmp_path / "x")
    loaded = source.load()
    assert torch.equal(loaded.model(IDS), model(IDS))
    assert (loaded.quant, source.tokenizer_sha256) == (QUANTS[name], "f" * 64)
    assert list(source.weights_sha256) == ["model.safetensors"]


def test_a_damaged_packed_file_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, None)
    content = bytearray(path.read_bytes())
    content[-9] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"packed\.safetensors has damaged bytes"):
        open_source(path)


def test_a_tokenizer_is_given_only_where_none_is_known(tmp_path: Path) -> None:
    path = packed(tmp_path, None)
    given = tmp_path / "tokenizer.model"
    given.write_bytes(sentencepiece_model())
    with pytest.raises(ValueError, match="knows its own tokenizer"):
        open_source(path, tokenizer=given)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        open_source(tmp_path / "nowhere")
