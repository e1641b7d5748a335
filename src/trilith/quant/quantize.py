"""Quantize, dequantize, fake-quantize: plain torch, the reference for everything fast."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from trilith.quant.config import QuantConfig
from trilith.quant.grid import Grid, nearest_codes, numerators_of
from trilith.quant.scale import (
    absmean_scale,
    grouped,
    least_squares_scale,
    median_scale,
    weighted_scale,
)

INT8_MAX = 127
MIN_ABSMAX = 1e-5


class QuantizedWeight(NamedTuple):
    """latent ~ levels[codes] * scale, with the scale of a row's or a tensor's group of inputs."""

    codes: Tensor  # uint8 [O, I]
    scale: Tensor  # float32 [O or 1, G]


class QuantizedActivation(NamedTuple):
    """x ~ values * scale; the values are whole numbers in -127..127 held in float32."""

    values: Tensor  # [..., I]
    scale: Tensor  # [..., 1]


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Value of `quantized`, gradient of `x` (Bengio et al., arXiv 1308.3432).

    Written as q + (x - x), not x + (q - x): the latter rounds twice and leaves the grid.
    """
    return quantized.detach() + (x - x.detach())


def fit_scale(latent: Tensor, config: QuantConfig) -> Tensor:
    """Fit the scales of a weight [O, I] by the rule of the config: float32 [O or 1, G].

    A learned scale starts at the least-squares one.
    """
    blocks = grouped(latent.detach(), config.granularity, config.group_size)
    if config.scale_rule == "absmean":
        return absmean_scale(blocks)
    if config.scale_rule == "median":
        return median_scale(blocks)
    if config.scale_rule == "unit":
        return torch.ones(blocks.shape[:-1], device=latent.device)
    return least_squares_scale(blocks, config.levels)


def fit_weighted_scale(latent: Tensor, importance: Tensor, config: QuantConfig) -> Tensor:
    """Fit the least-squares scales of a weight [O, I] whose inputs matter unequally.

    Args:
        latent: [O, I].
        importance: weight of each input's squared error [I], such as its mean square.
        config: grid and granularity.

    Returns:
        float32 [O or 1, G].
    """
    shape = config.granularity, config.group_size
    weights = grouped(importance.float().expand_as(latent), *shape)
    return weighted_scale(grouped(latent.detach(), *shape), weights, config.levels)


def num_scales(latent: Tensor, config: QuantConfig) -> int:
    """Number of scales that a weight [O, I] has by the config; a meta tensor will do."""
    return scale_shape(latent, config).numel()


def scale_shape(latent: Tensor, config: QuantConfig) -> torch.Size:
    """Shape of the scales of a weight [O, I] by the config, [O or 1, G]; a meta tensor will do."""
    return grouped(latent, config.granularity, config.group_size).shape[:2]


def quantize(latent: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return the uint8 codes [O, I] of a weight [O, I] for the given scales [O or 1, G]."""
    return nearest_codes(latent.float() / expand_scale(scale, latent.shape[1]), grid)


def dequantize(codes: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return `levels[codes] * scale` in float32: codes [O, I], scale [O or 1, G] -> [O, I]."""
    factor = expand_scale(scale, codes.shape[1]) / grid.denominator
    return numerators_of(codes, grid) * factor


def quantize_weight(latent: Tensor, config: QuantConfig) -> QuantizedWeight:
    """Fit the scales of a weight [O, I] and quantize it."""
    scale = fit_scale(latent, config)
    return QuantizedWeight(quantize(latent.detach(), scale, config.levels), scale)


def fake_quantize(latent: Tensor, config: QuantConfig) -> Tensor:
    """Return the weight [O, I] on its grid in floats, with the straight-through gradient."""
    codes, scale = quantize_weight(latent, config)
    return straight_through(latent, dequantize(codes, scale, config.levels).to(latent.dtype))


def learn_scale(latent: Tensor, log_scale: Tensor, config: QuantConfig) -> Tensor:
    """Return the latent weight [O, I], so that its gradient also teaches the scale.

    With the gradient G of the quantized weight q = level * s, the scale's is the sum over its block
    of G * (level - w / s), and of G * level beyond the outermost level; times 1 / sqrt(n * Qp) for
    n weights and a largest numerator Qp (LSQ, arXiv 1902.08153, eq. 3). Times s for its logarithm.
    """
    return _LearnScale.apply(latent, log_scale, config)


class _LearnScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, latent: Tensor, log_scale: Tensor, config: QuantConfig) -> Tensor:
        ctx.save_for_backward(latent, log_scale)
        ctx.config = config  # type: ignore[attr-defined]
        return latent.view_as(latent)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        latent, log_scale = ctx.saved_tensors  # type: ignore[attr-defined]
        config: QuantConfig = ctx.config  # type: ignore[attr-defined]
        grid, scale = config.levels, log_scale.exp()
        quantized = dequantize(quantize(latent, scale, grid), scale, grid)
        inside = latent.abs() <= expand_scale(scale, latent.shape[1]) * grid.max_level
        slope = quantized - torch.where(inside, latent, 0)
        blocks = grouped(grad * slope, config.granularity, config.group_size)
        grad_scale = blocks.sum(dim=-1) / math.sqrt(blocks.shape[-1] * grid.numerators[-1])
        return grad, grad_scale, None


def quantize_activation(x: Tensor) -> QuantizedActivation:
    """Quantize each token to int8 by its largest magnitude (absmax).

    Args:
        x: [..., I].

    Returns:
        Whole numbers and the scale of each token, float32.
    """
    x = x.float()
    lowest, highest = torch.aminmax(x, dim=-1, keepdim=True)
    absmax = torch.maximum(-lowest, highest).clamp_(min=MIN_ABSMAX)
    values = (x * (INT8_MAX / absmax)).round_()
    return QuantizedActivation(values, absmax / INT8_MAX)


def fake_quantize_activation(x: Tensor) -> Tensor:
    """Return each token of x [..., I] on its int8 grid in floats, straight-through gradient."""
    values, scale = quantize_activation(x.detach())
    return straight_through(x, (values * scale).to(x.dtype))


def expand_scale(scale: Tensor, num_in: int) -> Tensor:
    """Repeat scales [O or 1, G] over the inputs of their group: [O or 1, I] or [O or 1, 1]."""
    if scale.shape[1] == 1:
        return scale
    return scale.repeat_interleave(num_in // scale.shape[1], dim=1)


def sqnr_db(latent: Tensor, quantized: Tensor) -> float:
    """Signal to quantization noise ratio in dB of a weight and its quantized values."""
    signal = latent.float().square().sum()
    noise = (latent.float() - quantized.float()).square().sum()
    return float(10 * torch.log10(signal / noise))
