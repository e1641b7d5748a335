"""Stored precision of what stays in floats: bfloat16, or int8 rows for embedding and head."""

import torch
from torch import Tensor

from trilith.packed.config import EmbeddingPrecision
from trilith.quant import quantize_activation


def store_rows(weight: Tensor, precision: EmbeddingPrecision) -> dict[str, Tensor]:
    """Return the stored tensors of an embedding or head [V, D].

    Returns:
        `weight` in bfloat16; or `weight` in int8 and `scale`, float32 [V, 1]: each row by its
        largest magnitude, as activations are.
    """
    if precision == "bf16":
        return {"weight": weight.to(torch.bfloat16)}
    values, scale = quantize_activation(weight)
    return {"weight": values.to(torch.int8), "scale": scale}


def restore_rows(stored: dict[str, Tensor]) -> Tensor:
    """Return the float32 rows [V, D] that `store_rows` keeps; a copy of its own."""
    weight = stored["weight"].to(torch.float32, copy=True)
    if "scale" in stored:
        weight *= stored["scale"]
    return weight
