"""llama2.c files compute what run.c does; a file that is not whole is refused by its size."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.imports.making import drawn, llama2c_bytes, tokenizer_bin, write_llama2c
from tests.imports.making import sentencepiece_model as train
from tests.imports.plain_llama import logits, normalize

from trilith.imports import open_source
from trilith.model import ModelConfig
from trilith.quant import BitLinear

IDS = [1, 270, 5, 299, 33, 260, 260, 7]
CLOSE = 2e-4


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_an_imported_model_computes_what_llama_does(
    tmp_path: Path, version: int, tied_head: bool
) -> None:
    shape, weights = drawn(tied_head=tied_head)
    path = write_llama2c(tmp_path, weights, shape=shape)
    path.write_bytes(llama2c_bytes(weights, shape=shape, version=version))
    source = open_source(path)
    assert source.model == shape
    assert (source.kind, source.stored) == ("llama2.c", "float32")
    found = source.load().model(torch.tensor([IDS]))[0]
    expected = logits(weights, shape, IDS, "pairs")
    assert (found.double() - expected).abs().max() < CLOSE


@pytest.mark.parametrize("change", [-1, -1000, 4])
def test_a_file_of_another_size_is_refused(tmp_path: Path, change: int) -> None:
    path = write_llama2c(tmp_path, drawn()[1])
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(ValueError, match=rf"has {len(content) + change} bytes, and a model of"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "has 0 bytes, too few"),
        (b"\x80\x02}q\x00" * 100, "is no llama2.c file: its header gives the sizes"),
        (b"24ka" + struct.pack("<i", 2) + b"\0" * 300, r"llama2.c version 2 \(int8\)"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        open_source(path)


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    shape, weights = drawn()
    weights["2.k_proj"][0, 0] = torch.nan
    source = open_source(write_llama2c(tmp_path, weights, shape=shape))
    with pytest.raises(ValueError, match=r"not finite, in our blocks\.2\.attention\.qkv\.weight"):
        source.load()


def test_the_tokenizer_must_be_there_and_must_fit(tmp_path: Path) -> None:
    path = write_llama2c(tmp_path / "a", drawn()[1])
    (tmp_path / "a/tokenizer.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer lies beside"):
        open_source(path)
    given = tmp_path / "other.bin"
    given.write_bytes(tokenizer_bin(train(310)))
    with pytest.raises(ValueError, match="has 300 rows and the tokenizer 310 ids"):
        open_source(path, tokenizer=given)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin does not exist"):
        open_source(path, tokenizer=tmp_path / "nowhere.bin")


def test_of_two_tokenizers_none_is_guessed(tmp_path: Path) -> None:
    path = write_llama2c(tmp_path, drawn()[1])
    (tmp_path / "second.bin").write_bytes((tmp_path / "tokenizer.bin").read_bytes())
    with pytest.raises(ValueError, match=r"any of second\.bin, tokenizer\.bin; choose one"):
        open_source(path)
    assert open_source(path, tokenizer=tmp_path / "second.bin").tokenizer


TERNARY = ModelConfig(
    "t", 300, 32, 2, 4, 2, "swiglu", 48, 64, 1e4, 1e-20, False, True, tied_head=True
)


def ternary_file(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write a bitllama2.c file; return its matrices [layers, O, I], factors included."""
    rng = np.random.default_rng(seed)
    s = TERNARY
    kv_width = s.num_kv_heads * s.head_width
    sizes = [s.width, s.mlp_width, s.num_layers, s.num_heads, s.num_kv_heads, s.vocab_size]
    content = b"24ka" + struct.pack("<8i", 1, *sizes, s.context) + b"\1"
    floats = {
        "norm": rng.normal(10, 2, s.width).astype("<f4"),
        "embedding": rng.normal(0, 0.04, (s.vocab_size, s.width)).astype("<f4"),
    }
    content = content.ljust(256, b"\0") + floats["norm"].tobytes() + floats["embedding"].tobytes()
    shapes = {"wq": (s.width, s.width), "wk": (kv_width, s.width), "wv": (kv_width, s.width)}
    shapes |= {"wo": (s.width, s.width), "w1": (s.mlp_width, s.width)}
    shapes |= {"w2": (s.width, s.mlp_width), "w3": (s.mlp_width, s.width)}
    matrices = {}
    for name, shape in shapes.items():
        stack = []
        for _ in range(s.num_layers):
            codes = rng.integers(-1, 2, shape)
            factor = np.float32(rng.uniform(0.1, 2))
            bits = np.array([3, 0, 1])[codes.flatten() + 1].reshape(-1, 4)
            packed = (bits << np.array([6, 4, 2, 0])).sum(1).astype(np.uint8)
            content += struct.pack("<f", factor) + packed.tobytes()
            stack.append(codes * float(factor))
        matrices[name] = np.stack(stack)
    path.write_bytes(content)
    (path.parent / "tokenizer.model").write_bytes(train())
    return matrices | floats


def bit_product(x: torch.Tensor, weight: np.ndarray) -> torch.Tensor:
    """bitllama2.c: x / (|x| sqrt(n)) to int8 by its largest magnitude, then the product."""
    x = x / x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    step = x.abs().amax(-1, keepdim=True) / 127
    return (x / step).round() * step @ torch.from_numpy(weight).double().T


def test_an_imported_ternary_model_computes_what_bitllama_does(tmp_path: Path) -> None:
    """One layer's projections against the formula, at their real inputs."""
    w = ternary_file(tmp_path / "t.bin")
    source = open_source(tmp_path / "t.bin")
    assert source.model == TERNARY
    assert source.kind == "bitllama2.c"
    model = source.load().model
    x = torch.randn(5, 32)
    block = model.blocks[1]
    hidden = bit_product(x.double(), w["w1"][1])
    gated = hidden / (1 + torch.exp(-hidden)) * bit_product(x.double(), w["w3"][1])
    expected = bit_product(gated, w["w2"][1])
    found = block.mlp(block.mlp_norm(x)).double()
    # An activation at the edge of two int8 steps may take the other one: 1/127 of one product.
    assert ((found - expected).norm() / expected.norm()) < 2e-3
    value = block.attention.qkv(block.attention_norm(x))[:, -16:].double()
    assert ((value - bit_product(x.double(), w["wv"][1])).norm() / value.norm()) < 2e-3
    final = normalize(x.double(), torch.from_numpy(w["norm"]).double(), 0.0)
    assert (model.norm(x).double() - final).abs().max() < 1e-4


def test_codes_are_those_of_the_file_and_stay_so_in_training(tmp_path: Path) -> None:
    w = ternary_file(tmp_path / "t.bin")
    model = open_source(tmp_path / "t.bin").load().model
    layer = model.blocks[0].mlp.down
    assert isinstance(layer, BitLinear)
    expected = torch.from_numpy(np.sign(w["w2"][0]) + 1).to(torch.uint8)
    assert torch.equal(layer.quantized_weight().codes, expected)
    before = layer.scale.clone()
    layer.train()(torch.randn(2, 48))
    assert torch.equal(layer.quantized_weight().codes, expected)
    assert torch.allclose(layer.scale, before, rtol=1e-6)


def test_a_code_that_bitllama_does_not_use_is_refused(tmp_path: Path) -> None:
    ternary_file(tmp_path / "t.bin")
    content = bytearray((tmp_path / "t.bin").read_bytes())
    content[-1] = 0b10_10_10_10
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"not finite, in our blocks\.1\.mlp\.up\.weight"):
        open_source(tmp_path / "t.bin").load()
