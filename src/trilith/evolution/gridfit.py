"""Fit: a dense model onto a grid, projection by projection, before anything is trained.

Each projection is fitted to the inputs that it gets once all before it are on the grid. What is
held beside the two models is one projection's moments and the calibration set's hidden states.
Axes: N windows, T tokens, D width, I inputs.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from trilith.evolution.compensation import compensate, output_scale
from trilith.model import Transformer, move_to_grid
from trilith.model.rope import rope_tables
from trilith.quant import BitLinear, QuantConfig, dequantized_weight, fit_weighted_scale, quantize

FitMethod = Literal["plain", "weighted", "gptq"]

# Windows that pass through a block at once.
_BATCH_SIZE = 4


class GridFit(NamedTuple):
    """A model on its grid, and what the grid costs each projection by name.

    An error is the squared norm of what is lost of the outputs on the calibration set, over that
    of the outputs: 0 loses nothing, 1 is as bad as no weights at all.
    """

    model: Transformer
    output_errors: dict[str, float]


@torch.no_grad()
def fit_to_grid(
    model: Transformer, quant: QuantConfig, *, method: FitMethod, windows_NT: Tensor
) -> GridFit:
    """Return a new model on the grid; `model`, dense or on another grid, is left unchanged.

    Args:
        model: its latent weights are fitted.
        quant: the grid to move to.
        method: "plain" fits scales by the rule of the grid; "weighted" by least squares over
            codes and scales, squared errors weighted with the mean squares of the inputs; "gptq"
            also moves the latent weights, so that later columns make up for earlier errors, and
            then gives each row, where rows have scales, the scale that suits its outputs.
        windows_NT: tokens of the calibration set.

    Raises:
        ValueError: the inputs of a projection are not finite, or `method` is not plain and the
            grid's rule keeps no scale.
    """
    moved = move_to_grid(model, quant).eval()
    for _, waiting in _projections(moved):
        waiting.quantized_share = 0.0
    num_tokens = windows_NT.shape[1]
    rope = rope_tables(
        torch.arange(num_tokens, device=windows_NT.device),
        moved.config.head_width,
        moved.config.rope_theta,
    )
    states = [moved.embedding(batch) for batch in windows_NT.split(_BATCH_SIZE)]
    errors = {}
    for number, block in enumerate(moved.blocks):
        for name, layer in _projections(block):
            place = f"blocks.{number}.{name}"
            moments = _second_moments(block, layer, states=states, rope=rope)
            if not moments.isfinite().all():
                raise ValueError(
                    f"{place}: its inputs on the calibration set are not finite, so nothing can be "
                    "fitted; train the dense model again"
                )
            latent = layer.weight.double()
            _fit(layer, moments, method)
            layer.quantized_share = 1.0
            errors[place] = _output_error(latent, dequantized_weight(layer).double(), moments)
        states = [block(state, rope, None) for state in states]
    return GridFit(moved.train(), errors)


def _projections(module: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Name and layer of every projection, in the order of their use."""
    for name, layer in module.named_modules():
        if isinstance(layer, BitLinear):
            yield name, layer


def _second_moments(
    block: nn.Module,
    layer: BitLinear,
    *,
    states: list[Tensor],
    rope: tuple[Tensor, Tensor],
) -> Tensor:
    """Mean of x x^T over the inputs x of a projection: float64 [I, I]."""
    num_in = layer.in_features
    moments = torch.zeros(num_in, num_in, dtype=torch.float64, device=layer.weight.device)
    num_seen = 0

    def add(_: nn.Module, arguments: tuple[Tensor]) -> None:
        nonlocal num_seen
        x = arguments[0].flatten(0, -2).double()
        moments.addmm_(x.T, x)
        num_seen += len(x)

    handle = layer.register_forward_pre_hook(add)
    try:
        for state in states:
            block(state, rope, None)
    finally:
        handle.remove()
    return moments / num_seen


def _fit(layer: BitLinear, moments: Tensor, method: FitMethod) -> None:
    if method == "plain":
        return
    scale = fit_weighted_scale(layer.weight, moments.diagonal(), layer.config)
    if method == "gptq":
        scale = _compensate(layer, scale, moments)
    layer.set_scale(scale)


def _compensate(layer: BitLinear, scale: Tensor, moments: Tensor) -> Tensor:
    """Compensate the latent weights; return the scale that then suits their codes."""
    grid = layer.config.levels
    latent = compensate(layer.weight, scale, moments=moments, grid=grid)
    if layer.config.granularity != "row":
        layer.weight.copy_(latent)
        return scale
    codes = quantize(latent, scale, grid)
    refitted = output_scale(layer.weight, codes, moments=moments, grid=grid)
    factor = torch.where(refitted > 0, refitted / scale, 1.0)
    # Weights and scales grow alike, so that the codes stay.
    layer.weight.copy_(latent * factor)
    return scale * factor


def _output_error(latent: Tensor, on_grid: Tensor, moments: Tensor) -> float:
    lost = latent - on_grid
    energy = ((latent @ moments) * latent).sum()
    return float(((lost @ moments) * lost).sum() / energy.clamp(min=1e-30))
