"""Descent: the same latent weights, moved from one grid to the next."""

import torch

from trilith.model import Transformer, build_model, load_weights
from trilith.quant import SCALE_NAMES, BitLinear, QuantConfig, dequantized_weight, sqnr_db


def move_to_grid(model: Transformer, quant: QuantConfig | None) -> Transformer:
    """Return a new model with the same latent weights, its scales fitted to the grid.

    Args:
        model: dense or on any grid; left unchanged.
        quant: the grid to move to; None for dense.
    """
    moved = build_model(model.config, quant)
    kept = {name: t for name, t in model.state_dict().items() if not _is_scale(name)}
    fresh = {name: t for name, t in moved.state_dict().items() if _is_scale(name)}
    load_weights(moved, kept | fresh, origin="the model that is moved to another grid")
    for module in moved.modules():
        if isinstance(module, BitLinear):
            module.refit()
    return moved


@torch.no_grad()
def grid_sqnr_db(model: Transformer) -> float:
    """Mean signal to quantization noise ratio in dB over the model's BitLinear weights."""
    ratios = []
    for module in model.modules():
        if isinstance(module, BitLinear):
            ratios.append(sqnr_db(module.weight, dequantized_weight(module)))
    return sum(ratios) / len(ratios)


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] in SCALE_NAMES
