"""Arithmetic of training in int8: native kernels on CPUs, int8 tensor cores on GPUs.

Products have the bits of `quant.Arithmetic`; the gradients stay with `quant.product`.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.kernels.choice import Isa, chosen_isa
from trilith.kernels.native_build import (
    QuantizedStruct,
    StepWeightStruct,
    WeightStruct,
    load_native,
)
from trilith.kernels.native_path import (
    MAX_INPUTS,
    MAX_OFFSET,
    Tiles,
    layouts_for,
    tile,
    weight_struct,
)
from trilith.quant import (
    EXACT_FLOAT32,
    INT8_MAX,
    Arithmetic,
    Grid,
    Product,
    QuantConfig,
    QuantizedActivation,
    StepWeight,
    grid_named,
    output_dtype,
    quantize_activation,
)

# torch._int_mm takes more than 16 rows and multiples of 8 columns.
_INT_MM_ROWS = 17
_INT_MM_COLUMNS = 8
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def fastest_arithmetic(device: torch.device) -> Arithmetic:
    """Return the fastest arithmetic on this device. A layer needs its own: it keeps the weight.

    Raises:
        ValueError: TRILITH_KERNELS names what this machine cannot run.
    """
    if device.type == "cuda":
        return TensorCoreArithmetic()
    isa = chosen_isa() if device.type == "cpu" else None
    return Arithmetic() if isa is None else NativeArithmetic(isa)


class BFloat16Arithmetic(Arithmetic):
    """Products of bfloat16 whole numbers with float32 sums, on tensor cores: exact up to 2^24."""

    def multiply(self, x: Tensor, weight: StepWeight, grid: Grid) -> Product:
        largest_sum = INT8_MAX * grid.numerators[-1] * weight.numerators.shape[1]
        if weight.scale.shape[1] > 1 or largest_sum >= EXACT_FLOAT32 or not x.is_cuda:
            return super().multiply(x, weight, grid)
        activation = quantize_activation(x)
        rows = activation.values.to(torch.bfloat16).flatten(0, -2)
        sums = torch.mm(rows, weight.numerators.to(torch.bfloat16).T, out_dtype=torch.float32)
        return _scaled(sums, x, activation, weight, grid)


class TensorCoreArithmetic(Arithmetic):
    """Products by `torch._int_mm`; shapes that it does not take go to the reference."""

    def multiply(self, x: Tensor, weight: StepWeight, grid: Grid) -> Product:
        num_out, num_in = weight.numerators.shape
        if weight.scale.shape[1] > 1 or num_in % _INT_MM_COLUMNS or num_out % _INT_MM_COLUMNS:
            return super().multiply(x, weight, grid)
        activation = quantize_activation(x)
        rows = activation.values.to(torch.int8).flatten(0, -2)
        num_tokens = rows.shape[0]
        if num_tokens < _INT_MM_ROWS:
            rows = F.pad(rows, (0, 0, 0, _INT_MM_ROWS - num_tokens))
        sums = torch._int_mm(rows, weight.numerators.T)[:num_tokens]
        return _scaled(sums.float(), x, activation, weight, grid)


class NativeArithmetic(Arithmetic):
    """The native kernels; a weight is put into their tiles once a step."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self._of: Tensor | None = None
        self._tiles: _StepTiles | None = None

    def refine(self, latent: Tensor, scale: Tensor, config: QuantConfig) -> Tensor:
        has_own_scales = config.granularity != "tensor"
        if not (has_own_scales and _is_native_step(latent, config.levels)):
            return super().refine(latent, scale, config)
        refined = scale.clone()
        library = load_native().library
        assert library is not None
        struct = _step_struct(latent, refined, None, None)
        library.trilith_refine(ctypes.byref(struct), self.isa.number, torch.get_num_threads())
        return refined

    def step_weight(self, latent: Tensor, scale: Tensor, grid: Grid) -> StepWeight:
        dtype = output_dtype(latent)
        if not (_is_native_step(latent, grid) and dtype in _NATIVE_DTYPES):
            return super().step_weight(latent, scale, grid)
        numerators = torch.empty_like(latent, dtype=torch.int8)
        quantized = torch.empty_like(latent, dtype=dtype)
        library = load_native().library
        assert library is not None
        struct = _step_struct(latent, scale.contiguous(), numerators, quantized)
        library.trilith_step_weight(ctypes.byref(struct), self.isa.number, torch.get_num_threads())
        return StepWeight(quantized, numerators, scale)

    def multiply(self, x: Tensor, weight: StepWeight, grid: Grid) -> Product:
        num_in = weight.numerators.shape[1]
        dtype = output_dtype(x)
        fits = num_in <= MAX_INPUTS and grid.numerators[-1] <= MAX_OFFSET
        if not (fits and x.is_cpu and dtype in _NATIVE_DTYPES):
            return super().multiply(x, weight, grid)
        if torch.compiler.is_compiling():
            operands = (x, weight.numerators, weight.scale)
            return Product(*_opaque_product(*operands, grid.name, self.isa.number, dtype))
        if self._tiles is None or self._of is not weight.numerators:
            self._tiles = _step_tiles(weight.numerators, weight.scale, grid)
            self._of = weight.numerators
        return _multiply(x, self._tiles, self.isa.number, dtype)


@torch.library.custom_op("trilith::int8_product", mutates_args=())
def _opaque_product(
    x: Tensor, numerators: Tensor, scale: Tensor, grid: str, isa: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The product for torch.compile, which cannot see into it; it keeps no tiles."""
    return _multiply(x, _step_tiles(numerators, scale, grid_named(grid)), isa, dtype)


@_opaque_product.register_fake
def _(
    x: Tensor, numerators: Tensor, scale: Tensor, grid: str, isa: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    outputs = x.new_empty((*x.shape[:-1], numerators.shape[0]), dtype=torch.float32)
    return outputs, x.new_empty(x.shape, dtype=dtype)


def _scaled(
    sums: Tensor, x: Tensor, activation: QuantizedActivation, weight: StepWeight, grid: Grid
) -> Product:
    """Bring sums of whole numbers [tokens, O] to the scale of their operands."""
    values, token_scale = activation
    factor = (weight.scale / grid.denominator).view(-1)
    outputs = (sums * factor).view(*x.shape[:-1], -1).mul_(token_scale)
    return Product(outputs, (values * token_scale).to(output_dtype(x)))


class _StepTiles(NamedTuple):
    """The weight of a step in tiles, with the struct that points into them."""

    tiles: Tiles
    struct: WeightStruct


def _step_tiles(numerators: Tensor, scale: Tensor, grid: Grid) -> _StepTiles:
    layout = layouts_for(grid)[0]
    tiles = tile(numerators, scale, grid=grid, layout=layout)
    struct = weight_struct(tiles, numerators.shape, offset=grid.numerators[-1], layout=layout)
    return _StepTiles(tiles, struct)


def _multiply(x: Tensor, tiles: _StepTiles, isa: int, dtype: torch.dtype) -> Product:
    x = x.float().contiguous()
    num_tokens = x.numel() // x.shape[-1]
    outputs = torch.empty(*x.shape[:-1], tiles.struct.num_out)
    activations = torch.empty(x.shape, dtype=dtype)
    library = load_native().library
    assert library is not None
    failed = library.trilith_linear_keeping(
        ctypes.byref(tiles.struct),
        x.data_ptr(),
        outputs.data_ptr(),
        ctypes.byref(QuantizedStruct(activations.data_ptr(), dtype == torch.bfloat16)),
        num_tokens,
        isa,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for a product of {num_tokens} tokens")
    return Product(outputs, activations)


def _is_native_step(latent: Tensor, grid: Grid) -> bool:
    """True where a step's weight is made by the C functions; compiled, torch fuses its own."""
    is_plain = latent.is_cpu and latent.dtype == torch.float32 and latent.is_contiguous()
    return is_plain and grid.numerators == (-1, 0, 1) and not torch.compiler.is_compiling()


def _step_struct(
    latent: Tensor, scale: Tensor, numerators: Tensor | None, quantized: Tensor | None
) -> StepWeightStruct:
    num_rows, num_in = latent.shape
    outputs = [None if tensor is None else tensor.data_ptr() for tensor in (numerators, quantized)]
    pointers = (latent.data_ptr(), scale.data_ptr(), *outputs)
    is_bfloat16 = quantized is not None and quantized.dtype == torch.bfloat16
    sizes = (num_rows, num_in, scale.shape[1], scale.shape[0])
    return StepWeightStruct(*pointers, is_bfloat16, *sizes)
