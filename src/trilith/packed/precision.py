"""Stored precision of embedding and head: floats, int8 by row, or 4 and 3 bits by group.

Axes: V vocabulary, D width, G groups.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trilith.kernels import GROUP_MULTIPLE, ROW_CODECS, ROW_GRIDS, StoredRows
from trilith.quant import least_squares_scale, quantize, quantize_activation

RowPrecision = Literal["f32", "bf16", "int8", "int4", "int3"]
_FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}
_BITS = {"int4": 4, "int3": 3}
# Rows that are fitted together: their floats stay in the cache.
_FITTED_ROWS = 256


class RowForm(NamedTuple):
    """A precision; `group_size` counts the features that share a scale, for int4 and int3 alone."""

    precision: RowPrecision
    group_size: int | None


def store_rows(weight: Tensor, form: RowForm) -> StoredRows:
    """Return an embedding or head [V, D] as it is stored.

    int8 takes each row by its largest magnitude, as activations are; int4 and int3 take the odd
    levels that fit a group with the least squared error, which loses less than levels with a zero.

    Raises:
        ValueError: groups do not divide the width into whole bytes, or a scale leaves float16.
    """
    precision, width = form.precision, weight.shape[1]
    if precision in _FLOATS:
        return StoredRows(weight.to(_FLOATS[precision], copy=True), None, width)
    if precision == "int8":
        values, scale = quantize_activation(weight)
        return StoredRows(values.to(torch.int8), scale, width)
    _require_groups(form, width=width)
    parts = [_coded(rows.float(), form) for rows in weight.split(_FITTED_ROWS)]
    values = torch.cat([part.values for part in parts])
    return StoredRows(values, torch.cat([part.scale for part in parts]), width)  # type: ignore[misc]


def row_bytes(shape: tuple[int, int], form: RowForm) -> int:
    """Bytes of a stored embedding or head of this shape [V, D].

    Raises:
        ValueError: groups do not divide the width into whole bytes.
    """
    num_rows, width = shape
    if form.precision in _FLOATS:
        return num_rows * width * _FLOATS[form.precision].itemsize
    if form.precision == "int8":
        return num_rows * (width + torch.float32.itemsize)
    num_groups = width // _require_groups(form, width=width)
    codec = ROW_CODECS[_BITS[form.precision]]
    return num_rows * (codec.num_bytes(width) + num_groups * torch.float16.itemsize)


def _coded(weight: Tensor, form: RowForm) -> StoredRows:
    bits = _BITS[form.precision]
    codec, grid = ROW_CODECS[bits], ROW_GRIDS[bits]
    num_rows, width = weight.shape
    blocks = weight.view(num_rows, -1, _require_groups(form, width=width))
    scale = least_squares_scale(blocks, grid).to(torch.float16)
    if not scale.isfinite().all():
        raise ValueError(
            f"the rows reach {float(weight.abs().max()):.3g}, beyond what {form.precision} stores "
            "with its float16 scales; choose pack.embedding and pack.head of bf16"
        )
    # A group of zeros has the scale 0, whatever its codes.
    divisor = torch.where(scale > 0, scale, 1).float()
    packed = codec.pack(quantize(weight, divisor, grid))
    return StoredRows(packed.view(num_rows, -1), scale, width)


def _require_groups(form: RowForm, *, width: int) -> int:
    size = form.group_size
    if not size or size % GROUP_MULTIPLE or width % size:
        raise ValueError(
            f"pack.group_size={size} does not fit rows of {width} features in {form.precision}; "
            f"choose a multiple of {GROUP_MULTIPLE} that divides {width}"
        )
    return size
