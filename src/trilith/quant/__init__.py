"""Grids, scales, fake quantization, BitLinear and codecs: torch alone, the reference for all."""

from trilith.quant.codec import CODECS, Codec, codecs_for
from trilith.quant.config import QuantConfig
from trilith.quant.grid import GRIDS, Grid, grid_named, nearest_codes, numerators_of
from trilith.quant.linear import BitLinear, integer_product
from trilith.quant.quantize import (
    QuantizedActivation,
    QuantizedWeight,
    dequantize,
    fake_quantize,
    fake_quantize_activation,
    fit_scale,
    num_scales,
    quantize,
    quantize_activation,
    quantize_weight,
    sqnr_db,
    straight_through,
)
from trilith.quant.scale import absmean_scale, least_squares_scale, refine_scale

__all__ = [
    "CODECS",
    "GRIDS",
    "BitLinear",
    "Codec",
    "Grid",
    "QuantConfig",
    "QuantizedActivation",
    "QuantizedWeight",
    "absmean_scale",
    "codecs_for",
    "dequantize",
    "fake_quantize",
    "fake_quantize_activation",
    "fit_scale",
    "grid_named",
    "integer_product",
    "least_squares_scale",
    "nearest_codes",
    "num_scales",
    "numerators_of",
    "quantize",
    "quantize_activation",
    "quantize_weight",
    "refine_scale",
    "sqnr_db",
    "straight_through",
]
