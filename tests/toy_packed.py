"""A packed toy model with a real tokenizer: it knows no language, only how to be deterministic."""

from pathlib import Path

import torch

from trilith.model import ModelConfig, build_model
from trilith.packed import Attachments, PackConfig, TokenizerParts, write_packed
from trilith.quant import QuantConfig
from trilith.tokens import SPECIAL_IDS, TokenizerConfig, train_tokenizer


def pack_toy(path: Path, *, context: int, vocab_size: int = 300) -> Path:
    """Write a ternary model with a tokenizer of 300 tokens."""
    texts = ["def add(a, b):\n    return a + b\n", "for word in text.split():\n    print(word)\n"]
    tokenizer = train_tokenizer(texts * 20, TokenizerConfig(300, 1.0, 8, ("\n",), 10**6, 1))
    norms = False, True, False
    shape = ModelConfig("toy", vocab_size, 24, 2, 6, 2, "swiglu", 40, context, 1e4, 1e-5, *norms)
    torch.manual_seed(0)
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
