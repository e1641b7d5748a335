"""Matrices as blocks of GGUF, exact but for their scales, which GGUF keeps in float16.

TQ1_0 and TQ2_0 share one scale among 256 weights of a row, Q8_0 among 32.
"""

from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilith.exports.matrices import GridMatrix, Matrix, RowMatrix

TERNARY_BLOCK = 256
_INT8_BLOCK = 32
# Half a unit in the last place of float16's normal numbers.
_HALF_PRECISION = 2.0**-11
_ASK_FOR_F16 = "write it with --type f16"


def ternary_blocks(matrix: Matrix, *, name: str, kind: Any) -> NDArray[np.uint8]:
    """Return the rows of a projection as TQ1_0 or TQ2_0.

    Raises:
        ValueError: the type cannot hold these weights; the text says why.
    """
    if not isinstance(matrix, GridMatrix):
        raise ValueError(
            f"{name} is dense, not ternary: {kind.name} cannot hold it; {_ASK_FOR_F16}"
        )
    if not set(matrix.grid.levels) <= {-1.0, 0.0, 1.0}:
        raise ValueError(
            f"{name} is on grid {matrix.grid.name} of {matrix.grid.num_levels} levels, and "
            f"{kind.name} holds -1, 0 and +1; {_ASK_FOR_F16}"
        )
    num_in, num_groups = matrix.shape[1], matrix.scale.shape[1]
    if num_in % TERNARY_BLOCK:
        raise ValueError(
            f"{name} has rows of {num_in} weights, and {kind.name} holds multiples of "
            f"{TERNARY_BLOCK}; {_ASK_FOR_F16}, or train with widths that are multiples"
        )
    if num_groups > 1 and (num_in // num_groups) % TERNARY_BLOCK:
        raise ValueError(
            f"{name} has a scale for every {num_in // num_groups} weights, and {kind.name} one for "
            f"{TERNARY_BLOCK}; {_ASK_FOR_F16}"
        )
    _require_half(matrix.scale, name=name)
    return gguf.quants.quantize(matrix.floats().numpy(), kind)


def row_blocks(matrix: RowMatrix, *, name: str) -> tuple[NDArray[np.uint8], Any]:
    """Return embedding or head and its type: the same numbers.

    int8 rows become Q8_0, with their integers; bfloat16 stays, and all else becomes F32.

    Raises:
        ValueError: Q8_0 cannot hold these rows.
    """
    values, scale = matrix.stored.values, matrix.stored.scale
    if matrix.stored.kind == "bfloat16":
        return _bytes_of(values), gguf.GGMLQuantizationType.BF16
    if matrix.stored.kind != "int8":
        return _bytes_of(matrix.floats()), gguf.GGMLQuantizationType.F32
    assert scale is not None
    num_rows, width = matrix.shape
    if width % _INT8_BLOCK:
        raise ValueError(
            f"{name} has rows of {width} weights, and Q8_0 holds multiples of {_INT8_BLOCK}; "
            f"{_ASK_FOR_F16}"
        )
    _require_half(scale, name=name)
    num_blocks = width // _INT8_BLOCK
    scales = scale.half().repeat_interleave(num_blocks, dim=1)
    blocks = torch.cat(
        [
            scales.view(torch.uint8).view(num_rows, num_blocks, 2),
            values.contiguous().view(torch.uint8).view(num_rows, num_blocks, _INT8_BLOCK),
        ],
        dim=2,
    )
    return blocks.view(num_rows, -1).numpy(), gguf.GGMLQuantizationType.Q8_0


def half_floats(matrix: Matrix, *, name: str) -> NDArray[np.float16]:
    """Return any matrix in float16.

    Raises:
        ValueError: a weight is beyond float16.
    """
    weight = matrix.floats().half()
    if not weight.isfinite().all():
        raise ValueError(f"{name} holds weights beyond 65504, the largest of float16")
    return weight.numpy()


def _require_half(scale: Tensor, *, name: str) -> None:
    """Refuse scales that float16 rounds by more than its precision, seen from the largest."""
    error = float((scale.half().float() - scale).abs().max())
    largest = float(scale.abs().max())
    if not error <= largest * _HALF_PRECISION:
        raise ValueError(
            f"{name} has scales up to {largest:.1e}, which GGUF's float16 would round by "
            f"{error:.1e}; {_ASK_FOR_F16}"
        )


def _bytes_of(weight: Tensor) -> NDArray[np.uint8]:
    return weight.contiguous().view(torch.uint8).numpy()
