"""Packed models with a real tokenizer, of shapes that other programs know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.imports.making import sentencepiece_model

from trilith.model import Bias, ModelConfig, RMSNorm, Transformer, build_model
from trilith.packed import Attachments, PackConfig, PackedFile, TokenizerParts, read_packed
from trilith.packed import write_packed as write
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer

Export = Callable[..., PackedFile]
TERNARY = QuantConfig("ternary", "absmean", "row", None, None)
# Rows of 256 and 512: what the ternary blocks of GGUF can hold.
WIDE = ModelConfig("wide", 300, 256, 2, 4, 2, "swiglu", 512, 64, 1e4, 1e-5, False, False, True)
IDS = torch.arange(40).view(2, 20)


def pack(
    model: Transformer, path: Path, *, tokenizer: bytes, embedding: str = "bf16"
) -> PackedFile:
    """Pack a model with its tokenizer."""
    known = Tokenizer.from_bytes(tokenizer)
    parts = TokenizerParts(tokenizer, known.special_ids)
    write(
        model,
        path=path,
        config=PackConfig("smallest", embedding),  # type: ignore[arg-type]
        attachments=Attachments(parts, {"name": model.config.name, "num_steps": 3}),
        proof_tokens=IDS,
    )
    return read_packed(path)


@pytest.fixture
def packed(tmp_path: Path) -> Export:
    """Pack a random model with uneven norms and biases."""

    def build(
        shape: ModelConfig = WIDE,
        quant: QuantConfig | None = TERNARY,
        *,
        embedding: str = "bf16",
        **tokenizer: Any,
    ) -> PackedFile:
        torch.manual_seed(0)
        model = build_model(shape, quant)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, RMSNorm):
                    module.weight.uniform_(0.5, 1.5)
                if isinstance(module, Bias):
                    module.weight.uniform_(-0.3, 0.3)
        content = sentencepiece_model(shape.vocab_size, **tokenizer)
        path = tmp_path / f"{shape.name}.safetensors"
        return pack(model, path, tokenizer=content, embedding=embedding)

    return build
