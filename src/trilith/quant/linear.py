"""BitLinear: a linear layer that trains latent weights and computes with their codes.

The forward pass multiplies whole numbers (level numerators and int8 activations, exact in float32)
and scales once, so a packed model that does the same in integers gives the same bits. The backward
pass is the straight-through one of `fake_quantize` and `fake_quantize_activation`.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from trilith.quant.config import QuantConfig
from trilith.quant.grid import Grid, numerators_of
from trilith.quant.quantize import (
    INT8_MAX,
    QuantizedWeight,
    expand_scale,
    fit_scale,
    quantize,
    quantize_activation,
)
from trilith.quant.scale import grouped, refine_scale

# Whole numbers up to here are exact in float32.
_EXACT_FLOAT32 = 2**24


class BitLinear(nn.Linear):
    """`nn.Linear` without bias whose `weight` is latent and whose product is quantized.

    With scale rule absmean the scale follows the weight at each call. With least_squares it is kept
    in the buffer `scale`: fitted by `refit`, refined by one alternation per training step. While
    `is_dense` is set, the layer is a plain `nn.Linear`: a dense phase before the quantized one.
    """

    scale: Tensor | None
    is_dense = False

    def __init__(self, num_in: int, num_out: int, config: QuantConfig) -> None:
        super().__init__(num_in, num_out, bias=False)
        self.config = config
        self.register_buffer("scale", None)
        if config.scale_rule == "least_squares":
            self.register_buffer("scale", torch.empty_like(fit_scale(self.weight, config)))
            self.refit()

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the kept scale to the weight from scratch; nothing to do for absmean."""
        if self.scale is not None:
            self.scale.copy_(fit_scale(self.weight, self.config))

    @torch.no_grad()
    def quantized_weight(self) -> QuantizedWeight:
        """Return the codes and scales that the forward pass computes with."""
        # A copy: the next forward pass refines the buffer while this one waits for its gradient.
        scale = fit_scale(self.weight, self.config) if self.scale is None else self.scale.clone()
        return QuantizedWeight(quantize(self.weight, scale, self.config.levels), scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if self.is_dense:
            return super().forward(x)
        if self.scale is not None and self.training:
            self._refine()
        codes, scale = self.quantized_weight()
        grid = self.config.levels
        if self.config.activation_bits is None:
            factor = expand_scale(scale, self.in_features) / grid.denominator
            return _FloatProduct.apply(x, self.weight, numerators_of(codes, grid) * factor)
        return _IntegerProduct.apply(x, self.weight, numerators_of(codes, grid), scale, grid)

    @torch.no_grad()
    def _refine(self) -> None:
        assert self.scale is not None
        blocks = grouped(self.weight, self.config.granularity, self.config.group_size)
        self.scale.copy_(refine_scale(blocks, self.scale, self.config.levels))


def integer_product(values: Tensor, numerators: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Reference product of whole-number activations and level numerators, scaled by the weight.

    Args:
        values: whole numbers in -127..127 held in float32, [..., I].
        numerators: whole numbers held in float32, [O, I].
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
        if largest_sum < _EXACT_FLOAT32:
            return values @ numerators.T
        return (values.double() @ numerators.double().T).float()


class _IntegerProduct(torch.autograd.Function):
    """W1.58A8 product: integer forward, straight-through backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, latent: Tensor, numerators: Tensor, scale: Tensor, grid: Grid
    ) -> Tensor:
        values, token_scale = quantize_activation(x)
        ctx.save_for_backward(values, token_scale, numerators, scale)
        ctx.grid = grid  # type: ignore[attr-defined]
        return integer_product(values, numerators, scale, grid).mul_(token_scale).to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, token_scale, numerators, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        factor = expand_scale(scale, values.shape[-1]) / ctx.grid.denominator  # type: ignore[attr-defined]
        grad_x = grad @ (numerators * factor).to(grad.dtype)
        scaled = (grad * token_scale).to(grad.dtype).flatten(0, -2)
        grad_weight = scaled.T @ values.to(grad.dtype).flatten(0, -2)
        return grad_x, grad_weight, None, None, None


class _FloatProduct(torch.autograd.Function):
    """Product with a quantized weight and float activations, straight-through backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, latent: Tensor, quantized: Tensor) -> Tensor:
        ctx.save_for_backward(x, quantized)
        return x @ quantized.to(x.dtype).T

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, quantized = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
        return grad @ quantized.to(grad.dtype), grad_weight, None
