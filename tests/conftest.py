"""What tests of several layers share."""

import os

import pytest
import torch

from trilith.model import ModelConfig

# Before anything imports the Triton kernels: without a GPU their interpreter runs them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Small enough for loops, with odd counts: 37 tokens, 6 heads over 2.
TOY = ModelConfig(
    name="toy",
    vocab_size=37,
    width=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    mlp="swiglu",
    mlp_width=40,
    context=32,
    rope_theta=10000.0,
    norm_eps=1e-5,
    qk_norm=False,
    sub_norm=False,
    tied_head=True,
)


@pytest.fixture
def toy() -> ModelConfig:
    """The toy shape."""
    return TOY
