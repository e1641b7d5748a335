"""Whole packed models on the Triton path: the logits of the torch path."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the extra gpu is not installed")

from trilith.kernels import PackedLinear, PackedWeight, TorchProduct, pack_weight
from trilith.kernels.triton_product import TritonProduct
from trilith.model import ModelConfig, Transformer, build_model
from trilith.packed import (
    Attachments,
    PackConfig,
    TokenizerParts,
    build_packed_model,
    read_packed,
    write_packed,
)
from trilith.quant import GRIDS, QuantConfig, QuantizedWeight, codecs_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QUANTS = {
    "ternary rows": QuantConfig("ternary", "absmean", "row", None, 8),
    "prime7 groups": QuantConfig("prime7", "least_squares", "group", 8, 8),
}


def _load(path: Path, kernels: str) -> Transformer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILITH_KERNELS", kernels)
        return build_packed_model(read_packed(path), device=DEVICE)


@pytest.mark.parametrize("kind", list(QUANTS))
def test_logits_are_those_of_the_torch_path(toy: ModelConfig, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = build_model(replace(toy, sub_norm=True, num_layers=1), QUANTS[kind])
    path = tmp_path / "toy.safetensors"
    attachments = Attachments(TokenizerParts(b"tokenizer", {"eos": 2}), {})
    proof = torch.arange(12).view(2, 6)
    config = PackConfig("smallest", "int8")
    write_packed(model, path=path, config=config, attachments=attachments, proof_tokens=proof)
    by_triton, by_torch = _load(path, "triton"), _load(path, "torch")
    assert sum(isinstance(module, TritonProduct) for module in by_triton.modules()) == 4
    tokens_BT = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for tokens in (tokens_BT, tokens_BT[:1, :1]):
        with torch.no_grad():
            found, expected = by_triton(tokens), by_torch(tokens)
        if DEVICE.type == "cpu":
            assert torch.equal(found, expected)
        else:
            # There torch multiplies with 1 / 127, which can turn the last bit of a scale.
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)


def _weight() -> PackedWeight:
    codes = torch.randint(0, 3, (5, 12), dtype=torch.uint8)
    quantized = QuantizedWeight(codes, torch.ones(1, 1))
    return pack_weight(quantized, grid=GRIDS["ternary"], codec=codecs_for(3)[0])


def test_kernels_of_a_cpu_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "avx2")
    with pytest.raises(ValueError, match=r"avx2 names kernels of a CPU.*to run on cuda"):
        PackedLinear(_weight(), activation_bits=8, device=torch.device("cuda"))


def test_triton_is_refused_on_a_cpu_that_does_not_interpret_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cannot run on cpu: load the model on a CUDA device"):
        PackedLinear(_weight(), activation_bits=8)


def test_float_activations_take_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "triton")
    product = PackedLinear(_weight(), activation_bits=None, device=DEVICE).product
    assert not isinstance(product, TritonProduct | TorchProduct)
