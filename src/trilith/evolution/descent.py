"""Descent: the same latent weights, moved from one grid to the next."""

import torch

from trilith.model import Transformer, build_model, load_weights
from trilith.quant import BitLinear, QuantConfig, dequantize, sqnr_db


def move_to_grid(model: Transformer, quant: QuantConfig | None) -> Transformer:
    """Return a new model with the same latent weights, its scales fitted to the grid.

    Args:
        model: dense or on any grid; left unchanged.
        quant: the grid to move to; None for dense.
    """
    moved = build_model(model.config, quant)
    kept = {name: t for name, t in model.state_dict().items() if not name.endswith(".scale")}
    fresh = {name: t for name, t in moved.state_dict().items() if name.endswith(".scale")}
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
            codes, scale = module.quantized_weight()
            ratios.append(sqnr_db(module.weight, dequantize(codes, scale, module.config.levels)))
    return sum(ratios) / len(ratios)
