"""Hugging Face folders: transformers computes what the packed file says, with the same ids."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.exports.conftest import IDS, TERNARY, WIDE, pack
from tests.imports.making import TEXT

from trilith.evolution import Turn
from trilith.exports.huggingface import write_huggingface
from trilith.imports import open_source
from trilith.model import build_model
from trilith.packed import PackedFile, load_model
from trilith.quant import QuantConfig, dequantize
from trilith.serving.template import chat_prompt
from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer

pytest.importorskip("tokenizers", reason="the extra `export` is not installed")
QUANTS = {
    "dense": None,
    "ternary": TERNARY,
    "prime7 groups": QuantConfig("prime7", "least_squares", "group", 64, None),
}
# Ways to take int8 activations: ternary four to a byte, and floats of all other kinds.
INT8_QUANTS = {
    "ternary tensor": QuantConfig("ternary", "absmean", "tensor", None, 8),
    "ternary rows": replace(TERNARY, activation_bits=8),
    "prime7 groups": QuantConfig("prime7", "least_squares", "group", 64, 8),
}
INT8_MODELS: list[tuple[dict[str, Any], str]] = [
    ({}, "ternary tensor"),
    ({}, "prime7 groups"),
    ({"tied_head": False}, "ternary rows"),
    ({"qkv_bias": True}, "ternary tensor"),
    ({"qk_norm": True}, "ternary tensor"),
    ({"sub_norm": True, "mlp": "gated_relu2"}, "ternary tensor"),
    ({"sub_norm": True, "mlp": "gated_relu2"}, "ternary rows"),
]
_OWN_VOCAB_SIZE = 340
TEXTS = [
    TEXT,
    "for i in range(10):\n        if i == 3:\n    \treturn  [i]",
    " leading and trailing ",
    "für 木 \U0001f600 \x00\x7f",
    "",
]


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("transformers", reason="the extra `export` is not installed")
    # Compiling what rounds activations takes longer than all tests.
    with torch.compiler.set_stance("force_eager"):
        yield module


def _written(file: PackedFile, folder: Path, weights: str = "float32") -> Path:
    write_huggingface(file, folder, weights=weights, figures=None)
    return folder


@torch.no_grad()
def _logits(transformers: Any, folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model(IDS).logits.float()


@pytest.mark.parametrize("name", QUANTS)
@pytest.mark.parametrize("tied_head", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_transformers_computes_the_same_logits(
    packed: Any, tmp_path: Path, transformers: Any, name: str, tied_head: bool
) -> None:
    file = packed(replace(WIDE, tied_head=tied_head), QUANTS[name], embedding="int8")
    found = _logits(transformers, _written(file, tmp_path / "out"))
    # The same weights and operations in another order: float32 rounding alone.
    torch.testing.assert_close(found, load_model(file.path)(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("changes", "quant"), INT8_MODELS, ids=str)
@torch.no_grad()
def test_transformers_rounds_activations_to_int8_as_the_packed_file_does(
    packed: Any, tmp_path: Path, transformers: Any, changes: dict[str, Any], quant: str
) -> None:
    file = packed(replace(WIDE, **changes), INT8_QUANTS[quant])
    found = _logits(transformers, _written(file, tmp_path / "out"))
    expected = load_model(file.path)(IDS)
    # Float activations are 2 percent off. What is left: features that lie between two whole numbers
    # are rounded to either, as float32 was added, and later layers round more of them differently.
    assert float((found - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "quant"), INT8_MODELS, ids=str)
@torch.no_grad()
def test_int8_models_come_back_with_the_same_bits(
    packed: Any, tmp_path: Path, changes: dict[str, Any], quant: str
) -> None:
    file = packed(replace(WIDE, **changes), INT8_QUANTS[quant])
    source = open_source(_written(file, tmp_path / "wide"))
    assert source.quant is not None
    expected = (INT8_QUANTS[quant].grid, INT8_QUANTS[quant].granularity, 8)
    assert (source.quant.grid, source.quant.granularity, source.quant.activation_bits) == expected
    assert torch.equal(source.load().model(IDS), load_model(file.path)(IDS))


def test_codes_and_scales_come_back_from_half_as_many_bytes(packed: Any, tmp_path: Path) -> None:
    file = packed(WIDE, INT8_QUANTS["ternary rows"])
    source = open_source(_written(file, tmp_path / "wide", "bfloat16"))
    found = source.load().model.blocks[1].mlp.down.quantized_weight()
    expected = file.packed_weight("blocks.1.mlp.down")
    assert torch.equal(found.codes, expected.codes())
    assert torch.equal(found.scale, expected.scale)


@torch.no_grad()
def test_ternary_weights_of_a_tensor_take_two_bits(packed: Any, tmp_path: Path) -> None:
    file = packed(WIDE, INT8_QUANTS["ternary tensor"])
    tensors = load_file(_written(file, tmp_path / "out") / "model.safetensors")
    packed_bytes = tensors["model.layers.1.mlp.down_proj.weight"]
    assert packed_bytes.dtype == torch.uint8 and packed_bytes.shape == (64, 512)
    # transformers' layout: row r of a quarter in the lowest bits, r + 64 in the next.
    rows = torch.stack([packed_bytes.int() // 4**place % 4 - 1 for place in range(4)])
    scale = tensors["model.layers.1.mlp.down_proj.weight_scale"]
    weight = file.packed_weight("blocks.1.mlp.down")
    expected = dequantize(weight.codes(), weight.scale, weight.grid)
    assert torch.equal(rows.view(256, 512) * scale, expected)
    assert not (tmp_path / "out/scales.trilith").exists()


def test_a_folder_that_lost_its_scales_is_refused(packed: Any, tmp_path: Path) -> None:
    folder = _written(packed(WIDE, INT8_QUANTS["ternary rows"]), tmp_path / "wide")
    scales = folder / "scales.trilith"
    content = scales.read_bytes()
    scales.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"scales\.trilith is cut or of another folder"):
        open_source(folder)
    scales.unlink()
    with pytest.raises(FileNotFoundError, match=r"scales\.trilith does not exist.*copy the whole"):
        open_source(folder)


@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_as_many_bytes_are_near(
    packed: Any, tmp_path: Path, transformers: Any, weights: str
) -> None:
    file = packed()
    folder = _written(file, tmp_path / "out", weights)
    expected = load_model(file.path)(IDS)
    # transformers computes in the weights' type: 8 bits of it are left in bfloat16.
    limit = 3e-2 if weights == "bfloat16" else 5e-3
    assert float((_logits(transformers, folder) - expected).norm() / expected.norm()) < limit


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({"mlp": "gated_relu2"}, "LlamaForCausalLM"),
        ({"qk_norm": True}, "Qwen3ForCausalLM"),
        ({"sub_norm": True}, "BitNetForCausalLM"),
        ({"sub_norm": True, "mlp": "gated_relu2", "tied_head": False}, "BitNetForCausalLM"),
    ],
    ids=str,
)
@torch.no_grad()
def test_other_shapes_take_an_architecture_that_has_them(
    packed: Any, tmp_path: Path, transformers: Any, changes: dict[str, Any], architecture: str
) -> None:
    file = packed(replace(WIDE, **changes))
    folder = _written(file, tmp_path / "out")
    assert f'"{architecture}"' in (folder / "config.json").read_text()
    torch.testing.assert_close(
        _logits(transformers, folder), load_model(file.path)(IDS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"qk_norm": True, "sub_norm": True}, "qk_norm and sub_norm"),
        ({"mlp": "relu2"}, "has mlp=relu2, which has no gate"),
    ],
    ids=str,
)
def test_what_transformers_cannot_compute_is_refused(
    packed: Any, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    file = packed(replace(WIDE, **changes))
    with pytest.raises(ValueError, match=text):
        _written(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _own_tokenizer() -> bytes:
    config = TokenizerConfig(_OWN_VOCAB_SIZE, 1.0, 8, ("\n", "    ", "        "), 10**6, 1)
    return train_tokenizer([TEXT, TEXTS[1]] * 10, config).model_bytes


@pytest.mark.parametrize("own", [True, False], ids=["ours", "of llama"])
def test_the_tokenizer_gives_the_same_ids_after_a_begin_mark(
    packed: Any, tmp_path: Path, transformers: Any, own: bool
) -> None:

    file = _own(tmp_path) if own else packed()
    ours = Tokenizer.from_bytes(file.tokenizer_bytes)
    theirs = transformers.AutoTokenizer.from_pretrained(_written(file, tmp_path / "out"))
    for text in TEXTS if own else TEXTS[:3]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == [ours.bos_id, *ids]
        assert theirs.decode(ids) == ours.decode(ids)


def _own(folder: Path) -> PackedFile:
    model = build_model(replace(WIDE, vocab_size=_OWN_VOCAB_SIZE), TERNARY)
    return pack(model, folder / "own.safetensors", tokenizer=_own_tokenizer())


@pytest.mark.parametrize("earlier", [[], [Turn(TEXTS[1], " yes\n"), Turn("", TEXTS[3])]])
@pytest.mark.parametrize("prompt", TEXTS)
def test_a_conversation_has_the_ids_of_trilith_chat(
    tmp_path: Path, transformers: Any, earlier: list[Turn], prompt: str
) -> None:
    file = _own(tmp_path)
    ours = Tokenizer.from_bytes(file.tokenizer_bytes)
    theirs = transformers.AutoTokenizer.from_pretrained(_written(file, tmp_path / "out"))
    messages = []
    for turn in [*earlier, Turn(prompt, "")]:
        messages.append({"role": "user", "content": turn.prompt})
        messages.append({"role": "assistant", "content": turn.response})
    found = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True)
    assert found["input_ids"] == chat_prompt(prompt, earlier=earlier, tokenizer=ours)


def test_a_system_message_goes_in_front_of_the_first_question(
    tmp_path: Path, transformers: Any
) -> None:
    file = _own(tmp_path)
    ours = Tokenizer.from_bytes(file.tokenizer_bytes)
    theirs = transformers.AutoTokenizer.from_pretrained(_written(file, tmp_path / "out"))
    texts = [("system", "Be kind."), ("user", "red"), ("assistant", "ball"), ("user", "blue")]
    said = [{"role": role, "content": content} for role, content in texts]
    found = theirs.apply_chat_template(said, add_generation_prompt=True)
    earlier = [Turn("Be kind.\n\nred", "ball")]
    assert found["input_ids"] == chat_prompt("blue", earlier=earlier, tokenizer=ours)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("user", "say <|end|>")], "holds <|end|>, which would become a mark"),
        ([("assistant", "yes")], "user and assistant in turn"),
        ([("user", "a"), ("system", "be kind")], "user and assistant in turn"),
        ([("system", "<s>"), ("user", "hello")], "holds <s>"),
    ],
    ids=str,
)
def test_what_would_get_other_ids_than_in_trilith_chat_is_refused(
    tmp_path: Path, transformers: Any, messages: list[tuple[str, str]], text: str
) -> None:
    folder = _written(_own(tmp_path), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    said = [{"role": role, "content": content} for role, content in messages]
    with pytest.raises(Exception, match=re.escape(text)):
        theirs.apply_chat_template(said)


def test_a_tokenizer_without_marks_of_a_conversation_has_no_template(
    packed: Any, tmp_path: Path
) -> None:
    folder = _written(packed(), tmp_path / "out")
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("name", QUANTS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_head": False}, {"qk_norm": True}, {"sub_norm": True, "mlp": "gated_relu2"}],
    ids=str,
)
@torch.no_grad()
def test_an_export_that_is_imported_gives_the_same_logits(
    packed: Any, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    shape = replace(WIDE, **changes)
    file = packed(shape, QUANTS[name], embedding="int8")
    source = open_source(_written(file, tmp_path / "wide"))
    assert source.model == shape
    assert source.tokenizer == file.tokenizer_bytes
    found, expected = source.load().model(IDS), load_model(file.path)(IDS)
    # The same weights; products of packed codes are exact where those of floats round.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
