"""Projections with int8 activations as transformers' BitNet layers (`AutoBitLinear`) take them.

These layers round activations to int8 by token, as ours do, whatever their weights are. Ternary
weights with one scale a tensor are written four to a byte; all others in floats with a scale of 1.
Of those floats, `SCALES_FILE` keeps scales and grids, for whoever imports the folder again.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trilith.exports.matrices import GridMatrix
from trilith.quant.grid import numerators_of

# No safetensors by name: readers that take all of those in a folder must not take this one.
SCALES_FILE = "scales.trilith"
_CODES_PER_BYTE = 4
_TERNARY = (-1.0, 0.0, 1.0)


def quantization_config(*, float_projections: list[str]) -> dict[str, Any]:
    """Return the section of config.json that asks for these layers.

    Args:
        float_projections: names of the projections that stay layers of floats.
    """
    return {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head", *float_projections],
    }


def packed_weight(matrix: GridMatrix) -> Tensor:
    """Return uint8 [O / 4, I]: of O / 4 = R, byte r holds rows r, R + r, ..., lowest bits first."""
    values = numerators_of(matrix.codes, matrix.grid, torch.int8).add_(1).view(torch.uint8)
    packed = torch.zeros(matrix.shape[0] // _CODES_PER_BYTE, matrix.shape[1], dtype=torch.uint8)
    for place, rows in enumerate(values.chunk(_CODES_PER_BYTE)):
        packed |= rows << (2 * place)
    return packed


def can_be_packed(matrix: GridMatrix) -> bool:
    """Tell whether codes and one scale say all of a projection."""
    is_whole = matrix.shape[0] % _CODES_PER_BYTE == 0
    return matrix.grid.levels == _TERNARY and matrix.scale.numel() == 1 and is_whole


def write_scales(matrices: dict[str, GridMatrix], folder: Path) -> None:
    """Write the scales and grids of the projections that are in floats, if there are any."""
    scales = {name: matrix.scale.clone() for name, matrix in matrices.items()}
    grids = {name: matrix.grid.name for name, matrix in matrices.items()}
    if scales:
        save_file(scales, folder / SCALES_FILE, metadata=grids)
