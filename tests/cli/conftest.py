"""A packed model with a real tokenizer, as the command line meets it."""

from pathlib import Path

import pytest
import torch

from trilith.model import ModelConfig, build_model
from trilith.packed import Attachments, PackConfig, TokenizerParts, write_packed
from trilith.quant import QuantConfig
from trilith.tokens import SPECIAL_IDS, TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ternary toy model; it knows no language, only how to be deterministic."""
    texts = ["def add(a, b):\n    return a + b\n", "for word in text.split():\n    print(word)\n"]
    tokenizer = train_tokenizer(texts * 20, TokenizerConfig(300, 1.0, 8, ("\n",), 10**6, 1))
    shape = ModelConfig("toy", 300, 24, 2, 6, 2, "swiglu", 40, 64, 1e4, 1e-5, False, True, False)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("packed") / "toy.safetensors"
    write_packed(
        build_model(shape, QuantConfig("ternary", "absmean", "row", None, 8)),
        path=path,
        config=PackConfig("smallest", "int8"),
        attachments=Attachments(
            TokenizerParts(tokenizer.model_bytes, dict(SPECIAL_IDS)), {"num_steps": 0, "seed": 11}
        ),
        proof_tokens=torch.arange(40).view(2, 20),
    )
    return path
