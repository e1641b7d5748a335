"""Rows of an embedding or a head as a packed file keeps them: restored where they are looked up.

Axes: V vocabulary, D width, G groups.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilith.kernels.choice import Isa
from trilith.kernels.native_build import RowsStruct, load_native
from trilith.quant import BITS3, BITS4, Codec, Grid, dequantize

# In the order of the C enum.
ROW_KINDS = ("float32", "bfloat16", "int8", "int4", "int3")
# Bits of a code: its codec, and its levels, odd numbers of scales.
ROW_CODECS: dict[int, Codec] = {4: BITS4, 3: BITS3}
ROW_GRIDS = {
    bits: Grid(f"int{bits}", tuple(range(1 - 2**bits, 2**bits, 2)), 1) for bits in ROW_CODECS
}
# Codes of a group begin and end with a byte, in either codec.
GROUP_MULTIPLE = 8
# Values that the torch path holds in floats at a time.
RESTORED_VALUES = 2**20


@dataclass(frozen=True)
class StoredRows:
    """Rows [V, D] as bytes.

    Attributes:
        values: float32, bfloat16 or int8 [V, D], or codes of 3 or 4 bits, uint8 [V, D * bits / 8].
        scale: None for floats; float32 [V, 1] for int8; float16 [V, G] for codes.
        width: D.

    Raises:
        ValueError: the parts do not fit each other.
    """

    values: Tensor
    scale: Tensor | None
    width: int

    def __post_init__(self) -> None:
        values, scale = self.values, self.scale
        if values.dim() != 2 or not self._fits_kind():
            found = "none" if scale is None else f"{list(scale.shape)} {scale.dtype}"
            raise ValueError(
                f"rows of {self.width} features cannot be {list(values.shape)} {values.dtype} "
                f"with scales {found}"
            )

    def _fits_kind(self) -> bool:
        values, scale = self.values, self.scale
        if values.dtype != torch.uint8:
            fits = values.shape[1] == self.width
            if values.dtype in (torch.float32, torch.bfloat16):
                return fits and scale is None
            fits = fits and values.dtype == torch.int8 and scale is not None
            return fits and (scale.dtype, scale.shape) == (torch.float32, (len(values), 1))  # type: ignore[union-attr]
        if scale is None or scale.dtype != torch.float16 or scale.shape[:-1] != values.shape[:1]:
            return False
        is_grouped = scale.shape[1] and self.width % (scale.shape[1] * GROUP_MULTIPLE) == 0
        return bool(is_grouped) and 8 * values.shape[1] in (4 * self.width, 3 * self.width)

    @property
    def kind(self) -> str:
        """One of ROW_KINDS."""
        if self.values.dtype != torch.uint8:
            return str(self.values.dtype).removeprefix("torch.")
        return f"int{8 * self.values.shape[1] // self.width}"

    @property
    def shape(self) -> tuple[int, int]:
        """[V, D]."""
        return len(self.values), self.width

    def restore(self, index: slice | Tensor = slice(None)) -> Tensor:
        """Return rows [N, D] in float32, a copy of their own: all, a slice, or those of ids [N]."""
        values = self.values[index]
        if self.scale is None:
            return values.to(torch.float32, copy=True)
        scale = self.scale[index].float()
        if values.dtype == torch.int8:
            return values.float().mul_(scale)
        bits = 8 * values.shape[1] // self.width
        codes = ROW_CODECS[bits].unpack(values.reshape(-1), (len(values), self.width))
        return dequantize(codes, scale, ROW_GRIDS[bits])

    def parts(self) -> Iterator[Tensor]:
        """Hand out all rows in float32, a few at a time, in order."""
        step = max(1, RESTORED_VALUES // self.width)
        for start in range(0, len(self.values), step):
            yield self.restore(slice(start, start + step))

    def as_struct(self) -> RowsStruct:
        """Return what the C functions take; it points into the tensors, which must stay alive."""
        num_groups = 1 if self.scale is None else self.scale.shape[1]
        return RowsStruct(
            self.values.data_ptr(),
            None if self.scale is None else self.scale.data_ptr(),
            ROW_KINDS.index(self.kind),
            *self.shape,
            self.width // num_groups,
        )


class _PackedRows(nn.Module):
    """Keeps stored rows as buffers, so that they move with their model."""

    values: Tensor
    scale: Tensor | None

    def __init__(self, rows: StoredRows) -> None:
        super().__init__()
        self.width = rows.width
        self.register_buffer("values", rows.values)
        self.register_buffer("scale", rows.scale)

    @property
    def rows(self) -> StoredRows:
        """What is kept."""
        return StoredRows(self.values, self.scale, self.width)


class PackedEmbedding(_PackedRows):
    """`nn.Embedding` of stored rows: restores those of the tokens alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up ids [...]: float32 [..., D]."""
        return self.rows.restore(tokens.flatten()).view(*tokens.shape, self.width)


class PackedHead(_PackedRows):
    """`nn.Linear` of stored rows, restored a few at a time: the reference of `multiply_rows`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., D] to logits [..., V]."""
        parts = [F.linear(x, weight.to(x.dtype)) for weight in self.rows.parts()]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def multiply_rows(x: Tensor, *, rows: StoredRows, isa: Isa) -> Tensor:
    """Multiply with rows where they lie, by the native kernels.

    Args:
        x: float32 [N, D], contiguous, on the CPU.
        rows: [V, D].
        isa: the instruction set.

    Returns:
        float32 [N, V]; sums run in another order than torch's.
    """
    assert x.is_cpu and x.is_contiguous() and x.dtype == torch.float32, (x.device, x.dtype)
    assert x.dim() == 2 and x.shape[1] == rows.width, x.shape
    out = torch.empty(len(x), rows.shape[0])
    library = load_native().library
    assert library is not None
    failed = library.trilith_multiply_rows(
        ctypes.byref(rows.as_struct()),
        x.data_ptr(),
        len(x),
        out.data_ptr(),
        isa.number,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for a product of {len(x)} tokens with {rows.shape[0]} rows")
    return out
