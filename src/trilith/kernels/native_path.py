"""The native kernel: weights in tiles, float activations in, the torch path's bits.

Axes: O outputs, I inputs.
"""

import ctypes
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilith.kernels.choice import Isa
from trilith.kernels.native_build import WeightStruct, load_native
from trilith.kernels.pages import on_large_pages, room_on_large_pages
from trilith.kernels.weight import PackedWeight
from trilith.quant import Codec, Grid

Layout = Literal["bits2", "base3", "bits4"]


class _Geometry(NamedTuple):
    """A layout of trilith.h: its number there, and the inputs and bytes of a tile."""

    number: int
    tile_in: int
    tile_bytes: int


_GEOMETRY: dict[Layout, _Geometry] = {
    "bits2": _Geometry(2, 16, 64),
    "base3": _Geometry(3, 20, 64),
    "bits4": _Geometry(4, 16, 128),
}
# Codecs as repack.c numbers them, and its mark for codes that a grid has not.
_CODEC_NUMBERS = {"bits1": 1, "bits2": 2, "bits3": 3, "base3": 5, "planes": 10}
_NO_CODE = 255
# Outputs of a tile.
BLOCK = 16
# The kernels add up to 32 * 127 * I in int32, and pairs of products in int16.
MAX_INPUTS = 2**19
# Digits of base 3 are added where they are: 256 * 2 * 127 * I in int32.
MAX_BASE3_INPUTS = 2**15
# A quarter as many bytes are about what the last cache of a processor holds.
CACHED_WEIGHTS = 2**27
# Where digits of base 3 cost less than the bytes that they save: two instructions with VNNI, nine
# with AVX2, which then waits for itself and no more for the memory.
BASE3_ISAS = ("vnni", "amx")
MAX_OFFSET = 16
# Places in the table of levels: 4 bits name one.
NUM_LEVELS = 16
# BFLOAT16 of trilith.h.
_BFLOAT16 = 16


class NativeProduct(nn.Module):
    """Float activations [..., I] -> [..., O], equal to quantizing them and `packed_product`."""

    codes: Tensor
    levels: Tensor
    factor: Tensor

    def __init__(self, weight: PackedWeight, isa: Isa, *, layout: Layout) -> None:
        super().__init__()
        assert fits_native(weight), weight.shape
        self.isa = isa
        self.num_out, self.num_in = weight.shape
        self.layout = layout
        tiles = repack(weight, layout=self.layout)
        self.register_buffer("codes", tiles.codes)
        self.register_buffer("levels", on_large_pages(tiles.levels))
        self.register_buffer("factor", on_large_pages(tiles.factor))
        self.offset = weight.grid.numerators[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x [..., I] to int8 per token and multiply: [..., O] of the same dtype."""
        if not (x.is_cpu and self.codes.is_cpu):
            raise ValueError(
                f"native kernels run on the CPU and got activations on {x.device} and weights on "
                f"{self.codes.device}; load the model with its device"
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
        tiles = Tiles(self.codes, self.levels, self.factor)
        shape = (self.num_out, self.num_in)
        return weight_struct(tiles, shape, offset=self.offset, layout=self.layout)


class Tiles(NamedTuple):
    """A weight as the kernels take it."""

    codes: Tensor  # uint8, the tiles of trilith.h
    levels: Tensor  # uint8 [NUM_LEVELS]: numerators + offset
    factor: Tensor  # float32 [G, O padded to whole tiles]: scale / denominator


def tile(numerators: Tensor, scale: Tensor, *, grid: Grid, layout: Layout) -> Tiles:
    """Put a weight into tiles.

    Args:
        numerators: int8 [O, I], all of the grid.
        scale: float32 [O or 1, G].
        grid: the levels.
        layout: bits4, or for ternary another one.
    """
    num_bytes = tiled_bytes(numerators.shape, scale.shape[1], layout=layout)
    codes = torch.empty(num_bytes, dtype=torch.uint8)
    tiles = _tiles_of(codes, numerators.shape, scale=scale, grid=grid)
    offset = grid.numerators[-1]
    code_of = torch.zeros(2 * offset + 1, dtype=torch.uint8)
    code_of[torch.tensor(grid.numerators) + offset] = _tile_codes(grid, layout)
    struct = weight_struct(tiles, numerators.shape, offset=offset, layout=layout)
    numerators = numerators.contiguous()
    library = load_native().library
    assert library is not None
    pointers = (numerators.data_ptr(), code_of.data_ptr(), tiles.codes.data_ptr())
    library.trilith_tile(ctypes.byref(struct), *pointers, torch.get_num_threads())
    return tiles


def repack(weight: PackedWeight, *, layout: Layout) -> Tiles:
    """Put packed codes into tiles, straight from their bytes, on large pages.

    Raises:
        ValueError: a byte is not what the codec writes, or a code is beyond the grid.
    """
    grid, codec = weight.grid, weight.codec
    room = room_on_large_pages(tiled_bytes(weight.shape, weight.scale.shape[1], layout=layout))
    tiles = _tiles_of(room, weight.shape, scale=weight.scale, grid=grid)
    tile_code = torch.full((256,), _NO_CODE, dtype=torch.uint8)
    codes = torch.tensor(codec.codes_of_digits())
    is_known = codes < grid.num_levels
    digits = torch.arange(len(codes))
    tile_code[digits[is_known]] = _tile_codes(grid, layout)[codes[is_known]]
    struct = weight_struct(tiles, weight.shape, offset=grid.numerators[-1], layout=layout)
    library = load_native().library
    assert library is not None
    packed = weight.packed.contiguous()
    failed = library.trilith_repack(
        ctypes.byref(struct),
        packed.data_ptr(),
        _CODEC_NUMBERS[codec.name],
        tile_code.data_ptr(),
        tiles.codes.data_ptr(),
        torch.get_num_threads(),
    )
    codec.check_padding(packed, weight.shape)
    if failed:
        # The slow way names what is wrong.
        weight.codes()
        raise MemoryError(f"no memory to unpack a weight of {weight.shape}")
    return tiles


def _tiles_of(codes: Tensor, shape: Sequence[int], *, scale: Tensor, grid: Grid) -> Tiles:
    """Return tiles around codes that may still be to be written."""
    num_out = shape[0]
    levels = torch.zeros(NUM_LEVELS, dtype=torch.uint8)
    levels[: grid.num_levels] = torch.tensor(grid.numerators) + grid.numerators[-1]
    factor = (scale / grid.denominator).expand(num_out, -1)
    factor = F.pad(factor.T, (0, -num_out % BLOCK)).contiguous()
    return Tiles(codes, levels, factor)


def _tile_codes(grid: Grid, layout: Layout) -> Tensor:
    """Return what the tiles hold for each code of the grid."""
    if layout == "bits4":
        return torch.arange(grid.num_levels, dtype=torch.uint8)
    return (torch.tensor(grid.numerators) + grid.numerators[-1]).to(torch.uint8)


def weight_struct(
    tiles: Tiles, shape: tuple[int, ...], *, offset: int, layout: Layout
) -> WeightStruct:
    """Return what the C functions take; it points into the tensors, which must stay alive."""
    pointers = (tensor.data_ptr() for tensor in tiles)
    num_groups = tiles.factor.shape[0]
    return WeightStruct(*pointers, *shape, num_groups, _GEOMETRY[layout].number, offset)


def dense_struct(weight: Tensor) -> WeightStruct:
    """Return what a native decoder takes of a dense weight, bfloat16 [O, I] on the CPU.

    It points into the tensor, which must stay alive.
    """
    assert weight.is_cpu and weight.is_contiguous() and weight.dtype == torch.bfloat16, weight.dtype
    return WeightStruct(weight.data_ptr(), None, None, *weight.shape, 1, _BFLOAT16, 0)


def fits_native(weight: PackedWeight) -> bool:
    """True if no sum of this weight can overflow and its codes fit the tiles."""
    grid = weight.grid
    fits = grid.numerators[-1] <= MAX_OFFSET and grid.num_levels <= NUM_LEVELS
    return fits and weight.shape[1] <= MAX_INPUTS


def tiled_bytes(shape: tuple[int, ...], num_groups: int, *, layout: Layout) -> int:
    """Bytes of a weight [O, I] in tiles."""
    num_out, num_in = shape
    geometry = _GEOMETRY[layout]
    group_tiles = -(-(num_in // num_groups) // geometry.tile_in)
    return -(-num_out // BLOCK) * num_groups * group_tiles * geometry.tile_bytes


def native_bytes(shape: tuple[int, int], *, num_groups: int, layout: Layout) -> int:
    """Bytes that kernels hold of a weight of this shape: tiles, levels and factors."""
    padded_out = -(-shape[0] // BLOCK) * BLOCK
    factors = torch.float32.itemsize * num_groups * padded_out
    return tiled_bytes(shape, num_groups, layout=layout) + NUM_LEVELS + factors


def layout_in_memory(
    grid: Grid, *, isa: Isa | None, codec: Codec, num_weights: int, group_in: int
) -> Layout:
    """Return how kernels hold a weight of a model.

    What the caches hold is fastest with 2 bits; beyond, fewer bytes are faster on some processors.

    Args:
        grid: of the weight.
        isa: that runs it.
        codec: as the file has it; base 3 stays base 3 where that pays.
        num_weights: of all projections of the model.
        group_in: inputs that share a scale.
    """
    layouts = layouts_for(grid)
    is_large = num_weights > CACHED_WEIGHTS and group_in <= MAX_BASE3_INPUTS
    pays = isa is not None and isa.name in BASE3_ISAS
    keeps_base3 = pays and is_large and codec.name == "base3" and "base3" in layouts
    return "base3" if keeps_base3 else layouts[0]


def layouts_for(grid: Grid) -> tuple[Layout, ...]:
    """Return the layouts that hold codes of this grid, the fastest in the cache first."""
    return ("bits2", "base3") if grid.numerators[-1] == 1 else ("bits4",)
