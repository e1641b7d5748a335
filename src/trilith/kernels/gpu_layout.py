"""How weights lie in the memory of a GPU: plain torch, no Triton.

A row [I] is G groups, each of T bytes, T a multiple of 16 so that a thread reads 16 bytes at once.
A byte holds P digits: digit p of byte t belongs to input p * T + t of the group, so that the bytes
of a row and, for each p, the activations they meet are both contiguous. Inputs beyond the group
have digit 0 and meet activations that are 0.

    bits2   P = 4   numerator + 1 in bits 2p, 2p + 1
    base3   P = 5   numerator + 1; the digits n of base 3, p = 0 first, as ceil(256 n / 243)
    bits4   P = 2   the code in bits 4p to 4p + 2; a table has its numerator

In base 3, 3 times the byte is the next digit, above 8 bits, and the byte that has the rest.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.kernels.weight import PackedWeight
from trilith.quant import Grid, numerators_of

GpuLayout = Literal["bits2", "base3", "bits4"]

DIGITS_PER_BYTE: dict[GpuLayout, int] = {"bits2": 4, "base3": 5, "bits4": 2}
# Bytes that a thread reads at once.
VECTOR_BYTES = 16
# Places in the table of numerators: 3 bits name one.
TABLE_SIZE = 8
# Sums are int32: 30 * 127 * I, and bits2 adds digits where they are, 4 times as large.
MAX_INPUTS = 2**19
# Numerators and their offset make up a byte of at most 30.
MAX_OFFSET = 15


class GpuWeight(NamedTuple):
    """A weight [O, I] as the kernels take it."""

    codes: Tensor  # uint8 [O, G * T]
    factor: Tensor  # float32 [O or 1, G]: scale / denominator


def lay_out(weight: PackedWeight, layout: GpuLayout) -> GpuWeight:
    """Put a packed weight into the layout.

    Raises:
        ValueError: the layout does not hold this grid, or the weight is damaged.
    """
    if layout not in gpu_layouts_for(weight.grid):
        raise ValueError(
            f"layout {layout} does not hold grid {weight.grid.name}; choose one of "
            f"{', '.join(gpu_layouts_for(weight.grid))}"
        )
    (num_out, num_in), num_groups = weight.shape, weight.scale.shape[1]
    codes = weight.codes()
    # The digits of bits4 are codes, which the kernels look up.
    if layout != "bits4":
        codes = (numerators_of(codes, weight.grid, torch.int8) + 1).to(torch.uint8)
    per_byte = DIGITS_PER_BYTE[layout]
    num_bytes = group_bytes(num_in // num_groups, layout)
    padding = per_byte * num_bytes - num_in // num_groups
    digits = F.pad(codes.view(num_out, num_groups, -1), (0, padding))
    digits = digits.view(num_out, num_groups, per_byte, num_bytes)
    packed = _bytes_of(digits, layout).view(num_out, -1)
    return GpuWeight(packed.contiguous(), (weight.scale / weight.grid.denominator).contiguous())


def group_bytes(group_in: int, layout: GpuLayout) -> int:
    """Return T, the bytes of a group of that many inputs."""
    inputs_per_vector = VECTOR_BYTES * DIGITS_PER_BYTE[layout]
    return -(-group_in // inputs_per_vector) * VECTOR_BYTES


def gpu_layouts_for(grid: Grid) -> tuple[GpuLayout, ...]:
    """Return the layouts that hold codes of this grid, the one to take first; maybe none."""
    if grid.numerators[-1] == 1:
        return ("bits2", "base3")
    fits = grid.num_levels <= TABLE_SIZE and grid.numerators[-1] <= MAX_OFFSET
    return ("bits4",) if fits else ()


def fits_gpu(weight: PackedWeight) -> bool:
    """True if a layout holds this weight and no sum can overflow."""
    return bool(gpu_layouts_for(weight.grid)) and weight.shape[1] <= MAX_INPUTS


def level_table(grid: Grid) -> tuple[int, int]:
    """Return numerators + offset of codes 0..3 and 4..7 as the bytes of two words, low end first.

    Layouts whose digits are numerators + 1 need none.
    """
    shifted = [numerator + grid.numerators[-1] for numerator in grid.numerators[:TABLE_SIZE]]
    low, high = (int.from_bytes(bytes(part), "little") for part in (shifted[:4], shifted[4:]))
    return low, high


def _bytes_of(digits: Tensor, layout: GpuLayout) -> Tensor:
    """Pack digits uint8 [..., P, T] to bytes [..., T]."""
    planes = digits.int().unbind(dim=-2)
    total = torch.zeros_like(planes[0])
    if layout == "base3":
        for plane in planes:
            total = 3 * total + plane
        # The largest is ceil(256 * 242 / 243) = 255.
        return ((256 * total + 242) // 243).to(torch.uint8)
    bits = 8 // len(planes)
    for place, plane in enumerate(planes):
        total = total | (plane << (bits * place))
    return total.to(torch.uint8)
