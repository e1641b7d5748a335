"""The native kernel: weights in tiles of 2 or 4 bits, float activations in, the torch path's bits.

Axes: O outputs, I inputs.
"""

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilith.kernels.choice import Isa
from trilith.kernels.native_build import WeightStruct, load_native
from trilith.kernels.weight import PackedWeight
from trilith.quant import numerators_of

# Outputs and inputs of a tile, as in trilith.h.
TILE = 16
# The kernels add up to 32 * 127 * I in int32, and pairs of products in int16.
MAX_INPUTS = 2**19
MAX_OFFSET = 16


class NativeProduct(nn.Module):
    """Float activations [..., I] -> [..., O], equal to quantizing them and `packed_product`."""

    codes: Tensor
    levels: Tensor
    factor: Tensor

    def __init__(self, weight: PackedWeight, isa: Isa) -> None:
        super().__init__()
        assert fits_native(weight), weight.shape
        self.isa = isa
        self.num_out, self.num_in = weight.shape
        self.num_groups = weight.scale.shape[1]
        self.offset = weight.grid.numerators[-1]
        self.bits = 2 if self.offset == 1 else 4
        codes_OI = weight.codes()
        if self.bits == 2:
            codes_OI = (numerators_of(codes_OI, weight.grid) + 1).to(torch.uint8)
        self.register_buffer("codes", tile_codes(codes_OI, self.num_groups, bits=self.bits))
        levels = torch.zeros(16, dtype=torch.uint8)
        levels[: weight.grid.num_levels] = torch.tensor(weight.grid.numerators) + self.offset
        self.register_buffer("levels", levels)
        factor = (weight.scale / weight.grid.denominator).expand(self.num_out, -1)
        padding = (0, -self.num_out % TILE)
        self.register_buffer("factor", F.pad(factor.T, padding).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x [..., I] to int8 per token and multiply: [..., O] of the same dtype."""
        if not (x.is_cpu and self.codes.is_cpu):
            raise ValueError(
                f"native kernels run on the CPU and got activations on {x.device} and weights on "
                f"{self.codes.device}; set TRILITH_KERNELS=torch before loading the model"
            )
        assert x.shape[-1] == self.num_in, x.shape
        out = torch.empty(*x.shape[:-1], self.num_out)
        self.multiply_into(x.float().contiguous(), out)
        return out.to(x.dtype)

    def multiply_into(self, x: Tensor, out: Tensor) -> None:
        """Write the product of float32 [..., I] into float32 [..., O]; both contiguous, CPU."""
        num_tokens = x.numel() // self.num_in
        assert x.dtype == out.dtype == self.factor.dtype == torch.float32, self.factor.dtype
        assert x.is_contiguous() and out.is_contiguous()
        assert out.numel() == num_tokens * self.num_out, out.shape
        library = load_native().library
        assert library is not None
        failed = library.trilith_linear(
            ctypes.byref(self.as_struct()),
            x.data_ptr(),
            out.data_ptr(),
            num_tokens,
            self.isa.number,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a product of {num_tokens} tokens")

    def as_struct(self) -> WeightStruct:
        """Return what the C functions take; it points into the buffers of this module."""
        return WeightStruct(
            self.codes.data_ptr(),
            self.levels.data_ptr(),
            self.factor.data_ptr(),
            self.num_out,
            self.num_in,
            self.num_groups,
            self.bits,
            self.offset,
        )


def fits_native(weight: PackedWeight) -> bool:
    """True if no sum of this weight can overflow and its codes fit the tiles."""
    grid = weight.grid
    fits = grid.numerators[-1] <= MAX_OFFSET and grid.num_levels <= 16
    return fits and weight.shape[1] <= MAX_INPUTS


def tiled_bytes(shape: tuple[int, ...], num_groups: int, *, bits: int) -> int:
    """Bytes of a weight [O, I] in tiles."""
    num_out, num_in = shape
    group_tiles = -(-(num_in // num_groups) // TILE)
    return -(-num_out // TILE) * num_groups * group_tiles * TILE * TILE * bits // 8


def tile_codes(codes_OI: Tensor, num_groups: int, *, bits: int) -> Tensor:
    """Put codes into the tiles of trilith.h.

    Args:
        codes_OI: uint8, below 2**bits.
        num_groups: groups of inputs; each is padded to whole tiles.
        bits: 2 or 4.

    Returns:
        uint8 vector of num_blocks * num_groups * group_tiles * 32 * bits bytes.
    """
    num_out, num_in = codes_OI.shape
    group_in = num_in // num_groups
    blocks, tiles = -(-num_out // TILE), -(-group_in // TILE)
    padded = codes_OI.new_zeros(blocks * TILE, num_groups, tiles * TILE)
    padded[:num_out, :, :group_in] = codes_OI.view(num_out, num_groups, group_in)
    # block, output, group, tile, plane, input -> block, group, tile, plane, output, input
    planes = padded.view(blocks, TILE, num_groups, tiles, 4, 4).permute(0, 2, 3, 4, 1, 5)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None, None]
    shared = planes.unflatten(3, (-1, 8 // bits)) << shifts
    return shared.sum(dim=4, dtype=torch.uint8).view(-1)
