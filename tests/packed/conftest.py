"""Packed toy models and the trained models they come from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from trilith.model import Bias, ModelConfig, RMSNorm, Transformer, build_model
from trilith.packed import Attachments, PackConfig, PackReport, TokenizerParts, write_packed
from trilith.quant import QuantConfig


class Packed(NamedTuple):
    """A packed file, its report, and what it was made from."""

    path: Path
    report: PackReport
    model: Transformer
    config: PackConfig


Pack = Callable[..., Packed]
TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
TOKENIZER = TokenizerParts(b"not really a tokenizer" * 3, {"bos": 1, "eos": 2})
PROVENANCE = {"stage": "pretrain", "num_steps": 7, "loss_nats": 3.25, "seed": 0}


@pytest.fixture
def proof_tokens(toy: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, toy.vocab_size, (2, 9), generator=generator)


@pytest.fixture
def pack(toy: ModelConfig, tmp_path: Path, proof_tokens: Tensor) -> Pack:
    """Build a toy model with odd norms and pack it."""

    def build(
        quant: QuantConfig | None = TERNARY,
        *,
        codec: str = "smallest",
        embedding: str = "bf16",
        head: str | None = None,
        group_size: int | None = None,
        **changes: Any,
    ) -> Packed:
        torch.manual_seed(0)
        model = build_model(replace(toy, **changes), quant)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, RMSNorm | Bias):
                    module.weight.uniform_(0.5, 1.5)
        config = PackConfig(codec, embedding, head, group_size)  # type: ignore[arg-type]
        path = tmp_path / "model.safetensors"
        report = write_packed(
            model,
            path=path,
            config=config,
            attachments=Attachments(TOKENIZER, PROVENANCE),
            proof_tokens=proof_tokens,
        )
        return Packed(path, report, model, config)

    return build
