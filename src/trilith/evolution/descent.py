"""Descent through grids: how much of the latent weights a grid keeps."""

import torch

from trilith.model import Transformer
from trilith.quant import BitLinear, dequantized_weight, sqnr_db


@torch.no_grad()
def grid_sqnr_db(model: Transformer) -> float:
    """Mean signal to quantization noise ratio in dB over the model's BitLinear weights."""
    ratios = []
    for module in model.modules():
        if isinstance(module, BitLinear):
            ratios.append(sqnr_db(module.weight, dequantized_weight(module)))
    return sum(ratios) / len(ratios)
