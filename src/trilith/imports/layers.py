"""One layer of a Llama model in its own pieces, and our fused projections made of them.

Axes: O outputs, I inputs, H heads, C head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LayerWeights(NamedTuple):
    """Weights [O, I] and norms [I] as Llama splits them."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    attention_norm: Tensor
    mlp_norm: Tensor


def fuse(layer: LayerWeights, index: int) -> dict[str, Tensor]:
    """Return the weights of our block `index` by name."""
    weights = {
        "attention_norm.weight": layer.attention_norm,
        "attention.qkv.weight": torch.cat([layer.query, layer.key, layer.value]),
        "attention.out.weight": layer.out,
        "mlp_norm.weight": layer.mlp_norm,
        "mlp.up.weight": torch.cat([layer.gate, layer.up]),
        "mlp.down.weight": layer.down,
    }
    return {f"blocks.{index}.{name}": tensor for name, tensor in weights.items()}


def halves_from_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder rows [H * C, I] from RoPE on neighbours (2i, 2i + 1) to ours on (i, i + C / 2).

    Queries and keys reordered alike give the same scores.
    """
    num_rows, num_in = weight.shape
    pairs = weight.view(num_heads, num_rows // num_heads // 2, 2, num_in)
    return pairs.transpose(1, 2).reshape(num_rows, num_in)
