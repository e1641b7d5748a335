"""GGUF files, read back by the gguf package: every weight, norm and piece is where it belongs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exports.conftest import IDS, WIDE, pack
from tests.imports.making import TEXT
from torch import Tensor

from trilith.imports import open_source
from trilith.packed import PackedFile, load_model
from trilith.quant import QuantConfig, dequantize
from trilith.tokens import Tokenizer

gguf = pytest.importorskip("gguf", reason="the extra `export` is not installed")
from trilith.exports.gguf_file import write_gguf  # noqa: E402

WIDTH, KV_WIDTH, MLP_WIDTH, HEAD_WIDTH = 256, 128, 512, 64


class Written:
    """A GGUF file, its tensors in floats."""

    def __init__(self, path: Path) -> None:
        self.reader = gguf.GGUFReader(path)
        self.tensors = {
            tensor.name: torch.from_numpy(
                gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            )
            for tensor in self.reader.tensors
        }
        self.types = {tensor.name: tensor.tensor_type.name for tensor in self.reader.tensors}

    def value(self, key: str) -> Any:
        return self.reader.fields[key].contents()


def _write(file: PackedFile, path: Path, weights: str) -> Written:
    write_gguf(file, path, weights=weights)
    return Written(path)


def _weight(file: PackedFile, name: str) -> Tensor:
    packed = file.packed_weight(name)
    return dequantize(packed.codes(), packed.scale, packed.grid)


def _turned(weight: Tensor) -> Tensor:
    """Rows by the definition: of each head, feature 2i is our i, and 2i + 1 our i + C / 2."""
    rows = []
    for head in range(len(weight) // HEAD_WIDTH):
        for i in range(HEAD_WIDTH // 2):
            rows += [head * HEAD_WIDTH + i, head * HEAD_WIDTH + i + HEAD_WIDTH // 2]
    return weight[rows]


@pytest.mark.parametrize("weights", ["tq1_0", "tq2_0", "f16"])
def test_every_weight_is_there(packed: Any, tmp_path: Path, weights: str) -> None:
    file = packed(replace(WIDE, tied_head=False))
    written = _write(file, tmp_path / "model.gguf", weights)
    expected: dict[str, Tensor] = {
        "token_embd.weight": file.tensors["embedding.weight"].float(),
        "output.weight": file.tensors["head.weight"].float(),
        "output_norm.weight": file.tensors["norm.weight"],
    }
    for index in range(2):
        at = f"blocks.{index}"
        qkv, up = _weight(file, f"{at}.attention.qkv"), _weight(file, f"{at}.mlp.up")
        layer = {
            "attn_q": _turned(qkv[:WIDTH]),
            "attn_k": _turned(qkv[WIDTH : WIDTH + KV_WIDTH]),
            "attn_v": qkv[WIDTH + KV_WIDTH :],
            "attn_output": _weight(file, f"{at}.attention.out"),
            "ffn_gate": up[:MLP_WIDTH],
            "ffn_up": up[MLP_WIDTH:],
            "ffn_down": _weight(file, f"{at}.mlp.down"),
            "attn_norm": file.tensors[f"{at}.attention_norm.weight"],
            "ffn_norm": file.tensors[f"{at}.mlp_norm.weight"],
        }
        expected |= {f"blk.{index}.{name}.weight": weight for name, weight in layer.items()}
    assert set(written.tensors) == set(expected)
    for name, weight in expected.items():
        found = written.tensors[name].view(weight.shape)
        # float16 rounds to 2 ** -11 of a value; of ternary weights that is the scale alone.
        torch.testing.assert_close(found, weight, rtol=2.0**-11, atol=1e-7)
        if "blk" in name and "norm" not in name:
            assert torch.equal(found.sign(), weight.sign())
            assert written.types[name] == weights.upper()


def test_int8_rows_stay_the_same_integers(packed: Any, tmp_path: Path) -> None:
    file = packed(embedding="int8")
    written = _write(file, tmp_path / "model.gguf", "tq2_0")
    assert written.types["token_embd.weight"] == "Q8_0"
    stored = {key: file.tensors[f"embedding.{key}"] for key in ("weight", "scale")}
    expected = stored["weight"].float() * stored["scale"].half().float()
    assert torch.equal(written.tensors["token_embd.weight"], expected)


def test_scales_of_large_enough_groups_are_kept(packed: Any, tmp_path: Path) -> None:
    groups = QuantConfig("ternary", "least_squares", "group", 256, None)
    file = packed(WIDE, groups)
    written = _write(file, tmp_path / "model.gguf", "tq1_0")
    down = _weight(file, "blocks.1.mlp.down")
    found = written.tensors["blk.1.ffn_down.weight"]
    torch.testing.assert_close(found, down, rtol=2.0**-11, atol=0)
    assert len(down.abs().unique()) > WIDTH


def test_the_shape_and_the_tokenizer_are_described(packed: Any, tmp_path: Path) -> None:
    written = _write(packed(), tmp_path / "model.gguf", "tq2_0")
    expected = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 256,
        "llama.block_count": 2,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert {key: written.value(key) for key in expected} == expected
    assert written.value("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    pieces = written.value("tokenizer.ggml.tokens")
    assert len(pieces) == 300 and pieces[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert written.value("tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]


@pytest.mark.parametrize(
    ("changes", "architecture", "norm"),
    [
        ({"qk_norm": True}, "qwen3", "attn_q_norm"),
        ({"sub_norm": True}, "bitnet", "ffn_sub_norm"),
    ],
)
def test_norms_beyond_llama_take_an_architecture_that_has_them(
    packed: Any, tmp_path: Path, changes: dict[str, bool], architecture: str, norm: str
) -> None:
    file = packed(replace(WIDE, **changes))
    written = _write(file, tmp_path / "model.gguf", "tq2_0")
    assert written.value("general.architecture") == architecture
    assert f"blk.1.{norm}.weight" in written.tensors
    # These two turn the same features as ours.
    qkv = _weight(file, "blocks.0.attention.qkv")
    torch.testing.assert_close(
        written.tensors["blk.0.attn_q.weight"], qkv[:WIDTH], rtol=2.0**-11, atol=0
    )


@pytest.mark.parametrize("weights", ["tq1_0", "tq2_0", "f16"])
@pytest.mark.parametrize(
    "changes", [{}, {"tied_head": False}, {"qk_norm": True}, {"sub_norm": True}], ids=str
)
@torch.no_grad()
def test_an_export_that_is_imported_gives_the_same_logits(
    packed: Any, tmp_path: Path, changes: dict[str, bool], weights: str
) -> None:
    shape = replace(WIDE, **changes)
    file = packed(shape)
    write_gguf(file, tmp_path / "wide.gguf", weights=weights)
    source = open_source(tmp_path / "wide.gguf")
    assert source.model == shape
    assert (source.quant is None) == (weights == "f16")
    if source.quant is not None:
        # Float activations, as packed: int8 ones make noise of what float16 does to the scales.
        source = replace(source, quant=replace(source.quant, activation_bits=None))
    ours, theirs = (
        Tokenizer.from_bytes(model) for model in (file.tokenizer_bytes, source.tokenizer)
    )
    assert theirs.encode(TEXT) == ours.encode(TEXT) and theirs.special_ids == ours.special_ids
    found, expected = source.load().model(IDS), load_model(file.path)(IDS)
    # float16 moves each scale by up to 2 ** -11.
    assert float((found - expected).norm() / expected.norm()) < 2e-3


@torch.no_grad()
def test_scales_that_float16_holds_come_back_bit_for_bit(packed: Any, tmp_path: Path) -> None:
    file = packed(WIDE, QuantConfig("ternary", "absmean", "row", None, 8))
    write_gguf(file, tmp_path / "one.gguf", weights="tq2_0")
    once = open_source(tmp_path / "one.gguf")
    again = pack(once.load().model, tmp_path / "again.safetensors", tokenizer=once.tokenizer)
    write_gguf(again, tmp_path / "two.gguf", weights="tq1_0")
    twice = open_source(tmp_path / "two.gguf").load().model
    assert torch.equal(twice(IDS), once.load().model(IDS))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda content: content[:400], "is no GGUF file, or is cut"),
        (lambda content: b"LMGG" + content[4:], "is no GGUF file, or is cut"),
        (lambda content: content.replace(b"llama", b"lemma"), "has architecture lemma"),
        (lambda content: content.replace(b"attn_k.w", b"attn_z.w"), "lacks the tensors"),
        (lambda content: content[:-5000], "cut or damaged"),
    ],
    ids=["header alone", "magic", "architecture", "name", "cut"],
)
def test_damaged_and_foreign_files_are_refused(
    packed: Any, tmp_path: Path, damage: Any, text: str
) -> None:
    path = tmp_path / "wide.gguf"
    write_gguf(packed(replace(WIDE, num_layers=1)), path, weights="tq2_0")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"(?s)wide\.gguf .*{text}"):
        open_source(path)


ROW = {"scale_rule": "least_squares", "granularity": "row", "group_size": None}


@pytest.mark.parametrize(
    ("changes", "quant", "weights", "text"),
    [
        (
            {"num_layers": 1},
            QuantConfig("prime7", **ROW, activation_bits=8),
            "tq1_0",
            "prime7 of 7 levels",
        ),
        ({}, None, "tq2_0", "is dense"),
        ({"width": 128}, "row", "tq2_0", "rows of 128 weights"),
        ({"mlp_width": 320}, "row", "tq1_0", "rows of 320 weights"),
        ({}, "group", "tq2_0", "a scale for every 64 weights"),
        ({"qk_norm": True, "sub_norm": True}, "row", "f16", "qk_norm and sub_norm"),
        ({"sub_norm": True, "tied_head": False}, "row", "f16", "a head of its own"),
        ({"mlp": "relu2"}, "row", "f16", "mlp=relu2"),
        ({"mlp": "gated_relu2"}, "row", "f16", "mlp=gated_relu2"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | dict) else "",
)
def test_what_gguf_cannot_say_is_refused_and_nothing_is_written(
    packed: Any, tmp_path: Path, changes: dict[str, Any], quant: Any, weights: str, text: str
) -> None:
    if quant == "row":
        quant = QuantConfig("ternary", **ROW, activation_bits=8)
    if quant == "group":
        quant = QuantConfig("ternary", "least_squares", "group", 64, 8)
    file = packed(replace(WIDE, **changes), quant)
    with pytest.raises(ValueError, match=rf"(?s)wide\.safetensors .*{text}"):
        write_gguf(file, tmp_path / "out/model.gguf", weights=weights)
    assert list((tmp_path / "out").glob("*")) == []


def test_seven_levels_are_written_as_f16_when_that_is_asked_for(
    packed: Any, tmp_path: Path
) -> None:
    file = packed(replace(WIDE, num_layers=1), QuantConfig("prime7", **ROW, activation_bits=8))
    written = _write(file, tmp_path / "model.gguf", "f16")
    down = _weight(file, "blocks.0.mlp.down")
    found = written.tensors["blk.0.ffn_down.weight"]
    torch.testing.assert_close(found, down, rtol=2.0**-11, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model_type": "unigram"}, "is no BPE model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes the text first"),
        ({"remove_extra_whitespaces": True}, "changes the text first"),
    ],
)
def test_a_tokenizer_that_would_give_other_ids_is_refused(
    packed: Any, tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    file = packed(replace(WIDE, vocab_size=290), **settings)
    with pytest.raises(ValueError, match=text):
        write_gguf(file, tmp_path / "model.gguf", weights="tq2_0")
