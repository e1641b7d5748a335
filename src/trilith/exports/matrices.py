"""Matrices of a packed file as exports take them: on a grid, dense, or rows of the embedding.

Axes: O outputs, I inputs, G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trilith.kernels import StoredRows
from trilith.packed import PackedFile
from trilith.quant import Grid, dequantize


@dataclass(frozen=True)
class GridMatrix:
    """levels[codes] * scale: codes uint8 [O, I], scale float32 [O or 1, G]."""

    codes: Tensor
    scale: Tensor
    grid: Grid

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        return self.codes.shape[0], self.codes.shape[1]

    def floats(self) -> Tensor:
        """Return the weight in float32 [O, I]."""
        return dequantize(self.codes, self.scale, self.grid)

    def rows(self, index: Tensor) -> "GridMatrix":
        """Return these rows, in this order."""
        scale = self.scale if len(self.scale) == 1 else self.scale[index]
        return GridMatrix(self.codes[index], scale, self.grid)


@dataclass(frozen=True)
class DenseMatrix:
    """A projection that no grid holds: bfloat16 [O, I]."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        return self.weight.shape[0], self.weight.shape[1]

    def floats(self) -> Tensor:
        """Return the weight in float32 [O, I]."""
        return self.weight.float()

    def rows(self, index: Tensor) -> "DenseMatrix":
        """Return these rows, in this order."""
        return DenseMatrix(self.weight[index])


@dataclass(frozen=True)
class RowMatrix:
    """Embedding or head, as stored: [V, D]."""

    stored: StoredRows

    @property
    def shape(self) -> tuple[int, int]:
        """[V, D]."""
        return self.stored.shape

    def floats(self) -> Tensor:
        """Return the weight in float32 [V, D]."""
        return self.stored.restore()


Projection = GridMatrix | DenseMatrix
Matrix = GridMatrix | DenseMatrix | RowMatrix


def projection(file: PackedFile, name: str) -> Projection:
    """Return the projection of that name, as the packed file keeps it."""
    if f"{name}.codes" not in file.tensors:
        return DenseMatrix(file.tensors[f"{name}.weight"])
    weight = file.packed_weight(name)
    return GridMatrix(weight.codes(), weight.scale, weight.grid)


def rows_of(file: PackedFile, name: str) -> RowMatrix:
    """Return the `embedding` or the `head`."""
    return RowMatrix(file.stored_rows(name))


def pairs_from_halves(num_heads: int, head_width: int) -> Tensor:
    """Return the order of rows that turns RoPE on (i, i + C / 2), ours, into RoPE on (2i, 2i + 1).

    Queries and keys reordered alike give the same scores.
    """
    rows = torch.arange(num_heads * head_width)
    return rows.view(num_heads, 2, head_width // 2).transpose(1, 2).reshape(-1)
