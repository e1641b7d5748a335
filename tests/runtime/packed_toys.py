"""Packed models of a given shape, with norms that are not all one."""

from pathlib import Path

import torch

from trilith.model import ModelConfig, build_model
from trilith.packed import Attachments, PackConfig, TokenizerParts, write_packed
from trilith.quant import QuantConfig


def pack_shape(folder: Path, shape: ModelConfig, quant: QuantConfig | None) -> Path:
    """Write a model with weights of seed 0 and int8 rows."""
    torch.manual_seed(0)
    model = build_model(shape, quant)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    write_packed(
        model,
        path=folder / "toy.safetensors",
        config=PackConfig("smallest", "int8"),
        attachments=Attachments(TokenizerParts(b"tokenizer", {"eos": 2}), {}),
        proof_tokens=torch.arange(12).view(2, 6),
    )
    return folder / "toy.safetensors"
