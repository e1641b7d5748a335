"""Counts against formulas written out by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trilith.model import (
    ModelConfig,
    RMSNorm,
    build_model,
    count_parameters,
    training_flops_per_token,
)
from trilith.quant import QuantConfig

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
CHANGES: list[dict[str, Any]] = [
    {},
    {"tied_head": False},
    {"mlp": "relu2"},
    {"mlp": "gated_relu2", "qk_norm": True},
    {"sub_norm": True, "num_kv_heads": 6, "num_layers": 3},
    {"qkv_bias": True},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_parameters_by_part(toy: ModelConfig, changes: dict[str, Any]) -> None:
    config = replace(toy, **changes)
    width, head_width = config.width, config.width // config.num_heads
    attention = width * (width + 2 * config.num_kv_heads * head_width) + width * width
    mlp = width * config.mlp_width * (2 if config.mlp == "relu2" else 3)
    norms = 2 * width
    if config.qk_norm:
        norms += 2 * head_width
    if config.sub_norm:
        norms += width + config.mlp_width
    count = count_parameters(config)
    assert count.embedding == config.vocab_size * width
    assert count.head == (0 if config.tied_head else config.vocab_size * width)
    assert count.projections == config.num_layers * (attention + mlp)
    assert count.norms == config.num_layers * norms + width
    # Of 6 + 2 + 2 heads with 4 features.
    assert count.biases == (config.num_layers * 40 if config.qkv_bias else 0)
    real = build_model(config, QuantConfig("ternary", "absmean", "row", None, 8))
    assert count.total == sum(weight.numel() for weight in real.parameters())


def test_counting_a_large_model_allocates_nothing(toy: ModelConfig) -> None:
    heads = {"num_heads": 32, "num_kv_heads": 32, "num_layers": 32}
    config = replace(toy, vocab_size=32000, width=4096, mlp_width=11008, tied_head=False, **heads)
    # Llama 2 7B.
    assert count_parameters(config).total == 6_738_415_616


def test_training_flops_count_multiplying_weights_and_attention(toy: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(toy, None)
    count = count_parameters(toy)
    expected = 6 * (count.projections + count.embedding) + 6 * 2 * 24 * 10
    assert training_flops_per_token(model, 10) == expected


@pytest.mark.parametrize("quant", [None, TERNARY], ids=["dense", "ternary"])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_training_flops_are_torchs_own_with_attention_halved(
    toy: ModelConfig, changes: dict[str, Any], quant: QuantConfig | None
) -> None:
    model = build_model(replace(toy, **changes), quant)
    _use_torchs_norms(model)
    tokens = torch.randint(0, toy.vocab_size, (3, 32))
    # The plain path of attention is made of matrix products that torch can count, all T x T.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    without_attention = training_flops_per_token(model, 0)
    half_square = training_flops_per_token(model, 32) - without_attention
    counted = counter.get_total_flops() / tokens.numel()
    assert counted == without_attention + 2 * half_square


def _use_torchs_norms(model: nn.Module) -> None:
    """Ours write part of their gradient as matrix products, which torch would count as well."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, RMSNorm):
                setattr(parent, name, nn.RMSNorm(child.weight.numel(), eps=child.eps))
