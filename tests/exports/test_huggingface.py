"""Hugging Face folders: transformers computes what the packed file says, with the same ids."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exports.conftest import IDS, TERNARY, WIDE, pack
from tests.imports.making import TEXT

from trilith.exports.huggingface import write_huggingface
from trilith.imports import open_source
from trilith.model import build_model
from trilith.packed import PackedFile, load_model
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer

pytest.importorskip("tokenizers", reason="the extra `export` is not installed")
QUANTS = {
    "dense": None,
    "ternary": TERNARY,
    "prime7 groups": QuantConfig("prime7", "least_squares", "group", 64, None),
}
_OWN_VOCAB_SIZE = 340
TEXTS = [
    TEXT,
    "for i in range(10):\n        if i == 3:\n    \treturn  [i]",
    " leading and trailing ",
    "für 木 \U0001f600 \x00\x7f",
    "",
]


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers", reason="the extra `export` is not installed")


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


@torch.no_grad()
def test_float_activations_are_near_the_int8_ones_of_the_packed_file(
    packed: Any, tmp_path: Path, transformers: Any
) -> None:
    file = packed(WIDE, replace(TERNARY, activation_bits=8))
    found = _logits(transformers, _written(file, tmp_path / "out"))
    expected = load_model(file.path)(IDS)
    # What int8 rounding of random features comes to after two layers: 1.9 percent.
    assert 1e-3 < float((found - expected).norm() / expected.norm()) < 3e-2
    assert "int8 activations" in (tmp_path / "out/README.md").read_text()


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

    if own:
        model = build_model(replace(WIDE, vocab_size=_OWN_VOCAB_SIZE), TERNARY)
        file = pack(model, tmp_path / "own.safetensors", tokenizer=_own_tokenizer())
    else:
        file = packed()
    ours = Tokenizer.from_bytes(file.tokenizer_bytes)
    theirs = transformers.AutoTokenizer.from_pretrained(_written(file, tmp_path / "out"))
    for text in TEXTS if own else TEXTS[:3]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == [ours.bos_id, *ids]
        assert theirs.decode(ids) == ours.decode(ids)


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
