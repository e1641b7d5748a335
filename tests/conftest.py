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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole stages and slow tests come first: no worker ends long after the others."""
    long = {item.path for item in items if _is_long(item)}
    items.sort(key=lambda item: item.path not in long)


def _is_long(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return "start_stage" in fixtures or item.get_closest_marker("slow") is not None


@pytest.fixture
def toy() -> ModelConfig:
    """The toy shape."""
    return TOY
