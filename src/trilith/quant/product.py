"""The product of a quantized weight: exact forward, straight-through backward.

Axes: O outputs, I inputs, G groups.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from trilith.quant.config import QuantConfig
from trilith.quant.grid import Grid, numerators_of
from trilith.quant.quantize import INT8_MAX, expand_scale, quantize, quantize_activation
from trilith.quant.scale import grouped, refine_scale

# Whole numbers up to here are exact in float32.
EXACT_FLOAT32 = 2**24


class StepWeight(NamedTuple):
    """A weight as one optimizer step computes with it."""

    quantized: Tensor  # [O, I]: numerators * scale / denominator, in the dtype of the products
    numerators: Tensor  # int8 [O, I]
    scale: Tensor  # float32 [O or 1, G]


class Product(NamedTuple):
    """Outputs, and the activations as they were multiplied, for the gradient of the weight."""

    outputs: Tensor  # float32 [..., O]
    activations: Tensor  # whole numbers times the token's scale, in the dtype of the outputs


class Arithmetic:
    """How a layer computes, in plain torch: the reference for everything fast."""

    def refine(self, latent: Tensor, scale: Tensor, config: QuantConfig) -> Tensor:
        """One alternation of the least-squares fit: scales [O or 1, G] for a weight [O, I]."""
        blocks = grouped(latent, config.granularity, config.group_size)
        return refine_scale(blocks, scale, config.levels)

    def step_weight(self, latent: Tensor, scale: Tensor, grid: Grid) -> StepWeight:
        """Quantize a weight [O, I] with scales [O or 1, G]."""
        numerators = numerators_of(quantize(latent, scale, grid), grid, torch.int8)
        factor = expand_scale(scale, numerators.shape[1]) / grid.denominator
        quantized = (numerators * factor).to(output_dtype(latent))
        return StepWeight(quantized, numerators, scale)

    def multiply(self, x: Tensor, weight: StepWeight, grid: Grid) -> Product:
        """Quantize x [..., I] to int8 per token; multiply whole numbers in float32, exactly."""
        values, token_scale = quantize_activation(x)
        outputs = integer_product(values, weight.numerators, weight.scale, grid).mul_(token_scale)
        return Product(outputs, (values * token_scale).to(output_dtype(x)))


def quantized_product(
    x: Tensor, latent: Tensor, weight: StepWeight, *, grid: Grid, arithmetic: Arithmetic
) -> Tensor:
    """Product of int8 activations and a quantized weight; gradients go to x and to `latent`."""
    return _QuantizedProduct.apply(x, latent, *weight, grid, arithmetic)


def float_product(x: Tensor, latent: Tensor, weight: StepWeight) -> Tensor:
    """Product of float activations and a quantized weight; gradients go to x and to `latent`."""
    return _FloatProduct.apply(x, latent, weight.quantized)


def integer_product(values: Tensor, numerators: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Reference product of whole-number activations and level numerators, scaled by the weight.

    Args:
        values: whole numbers in -127..127 held in float32, [..., I].
        numerators: whole numbers, int8 or held in float32, [O, I].
        scale: weight scales, [O or 1, G].
        grid: the levels; divides by its denominator.

    Returns:
        float32 [..., O]: each group's accumulation is exact, groups are added in order.
    """
    factor = scale / grid.denominator
    num_groups = scale.shape[1]
    if num_groups == 1:
        return _exact_matmul(values, numerators, grid).mul_(factor.view(-1))
    total = torch.zeros((), device=values.device)
    for group, (part, weight) in enumerate(
        zip(values.chunk(num_groups, -1), numerators.chunk(num_groups, -1), strict=True)
    ):
        total = total + _exact_matmul(part, weight, grid) * factor[:, group]
    return total


def _exact_matmul(values: Tensor, numerators: Tensor, grid: Grid) -> Tensor:
    largest_sum = INT8_MAX * grid.numerators[-1] * numerators.shape[1]
    # Autocast would round the sums to bfloat16.
    with torch.autocast(values.device.type, enabled=False):
        if largest_sum < EXACT_FLOAT32:
            return values @ numerators.float().T
        return (values.double() @ numerators.double().T).float()


def output_dtype(x: Tensor) -> torch.dtype:
    """Return autocast's dtype where it is on, as other products have it; else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _QuantizedProduct(torch.autograd.Function):
    """W1.58A8 product: integer forward, straight-through backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        latent: Tensor,
        quantized: Tensor,
        numerators: Tensor,
        scale: Tensor,
        grid: Grid,
        arithmetic: Arithmetic,
    ) -> Tensor:
        product = arithmetic.multiply(x, StepWeight(quantized, numerators, scale), grid)
        ctx.save_for_backward(product.activations, quantized)
        ctx.dtypes = (x.dtype, latent.dtype)  # type: ignore[attr-defined]
        return product.outputs.to(output_dtype(x))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_straight_through_gradients(ctx, grad), None, None, None, None, None)


class _FloatProduct(torch.autograd.Function):
    """Product with a quantized weight and float activations, straight-through backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, latent: Tensor, quantized: Tensor) -> Tensor:
        dtype = output_dtype(x)
        operand = x.to(dtype)
        ctx.save_for_backward(operand, quantized)
        ctx.dtypes = (x.dtype, latent.dtype)  # type: ignore[attr-defined]
        return operand @ quantized.to(dtype).T

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_straight_through_gradients(ctx, grad), None)


class _Gradients(NamedTuple):
    x: Tensor
    latent: Tensor


def _straight_through_gradients(ctx: FunctionCtx, grad: Tensor) -> _Gradients:
    """Gradients of `activations @ quantized.T` as if both were what they stand for."""
    activations, quantized = ctx.saved_tensors  # type: ignore[attr-defined]
    x_dtype, latent_dtype = ctx.dtypes  # type: ignore[attr-defined]
    latent = grad.flatten(0, -2).T @ activations.flatten(0, -2).to(grad.dtype)
    return _Gradients((grad @ quantized.to(grad.dtype)).to(x_dtype), latent.to(latent_dtype))
