"""Whole packed models: native kernels and the torch path give the same logits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trilith.kernels import Isa, NativeProduct, TorchProduct
from trilith.model import KVCache, ModelConfig, Transformer, build_model
from trilith.packed import Attachments, PackConfig, TokenizerParts, load_model, write_packed
from trilith.quant import QuantConfig

QUANTS = {
    "ternary tensor": QuantConfig("ternary", "absmean", "tensor", None, 8),
    "ternary groups": QuantConfig("ternary", "absmean", "group", 8, 8),
    "sign rows": QuantConfig("sign", "absmean", "row", None, 8),
    "prime7 rows": QuantConfig("prime7", "least_squares", "row", None, 8),
    "planes rows": QuantConfig("planes", "least_squares", "row", None, 8),
    "uniform7 groups": QuantConfig("uniform7", "least_squares", "group", 8, 8),
}


@pytest.fixture(params=list(QUANTS))
def path(request: pytest.FixtureRequest, toy: ModelConfig, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model(replace(toy, sub_norm=True, qk_norm=True), QUANTS[request.param])
    write_packed(
        model,
        path=tmp_path / "model.safetensors",
        config=PackConfig("smallest", "int8"),
        attachments=Attachments(TokenizerParts(b"tokenizer", {"eos": 2}), {}),
        proof_tokens=torch.arange(12).view(2, 6),
    )
    return tmp_path / "model.safetensors"


def _load(path: Path, kernels: str, product: type) -> Transformer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILITH_KERNELS", kernels)
        model = load_model(path)
    assert sum(isinstance(module, product) for module in model.modules()) == 8
    return model


@torch.no_grad()
def _cached_logits(model: Transformer, tokens_BT: Tensor) -> Tensor:
    """Seven tokens of a prompt, the rest one by one."""
    cache = KVCache(model.config, batch_size=len(tokens_BT), capacity=tokens_BT.shape[1])
    steps = [tokens_BT[:, :7], *tokens_BT[:, 7:].split(1, dim=1)]
    return torch.cat([model(step, cache) for step in steps], dim=1)


def test_logits_are_those_of_the_torch_path_to_the_last_bit(path: Path, isa: Isa) -> None:
    torch_model = _load(path, "torch", TorchProduct)
    native_model = _load(path, isa.name, NativeProduct)
    tokens_BT = torch.randint(0, 37, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(native_model(tokens_BT), torch_model(tokens_BT))
    cached = _cached_logits(native_model, tokens_BT)
    assert torch.equal(cached, _cached_logits(torch_model, tokens_BT))
