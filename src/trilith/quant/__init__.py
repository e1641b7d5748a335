"""Grids, scales, fake quantization, BitLinear and codecs: torch alone, the reference for all."""

from trilith.quant.codec import BITS3, BITS4, CODECS, Codec, codecs_for
from trilith.quant.config import QuantConfig
from trilith.quant.grid import GRIDS, Grid, grid_named, nearest_codes, numerators_of
from trilith.quant.linear import SCALE_NAMES, BitLinear, dequantized_weight
from trilith.quant.product import (
    EXACT_FLOAT32,
    Arithmetic,
    Product,
    StepWeight,
    integer_product,
    output_dtype,
)
from trilith.quant.quantize import (
    INT8_MAX,
    QuantizedActivation,
    QuantizedWeight,
    dequantize,
    fake_quantize,
    fake_quantize_activation,
    fit_scale,
    fit_weighted_scale,
    num_scales,
    quantize,
    quantize_activation,
    quantize_weight,
    sqnr_db,
    straight_through,
)
from trilith.quant.scale import (
    absmean_scale,
    least_squares_scale,
    median_scale,
    refine_scale,
    weighted_scale,
)

__all__ = [
    "BITS3",
    "BITS4",
    "CODECS",
    "EXACT_FLOAT32",
    "GRIDS",
    "INT8_MAX",
    "SCALE_NAMES",
    "Arithmetic",
    "BitLinear",
    "Codec",
    "Grid",
    "Product",
    "QuantConfig",
    "QuantizedActivation",
    "QuantizedWeight",
    "StepWeight",
    "absmean_scale",
    "codecs_for",
    "dequantize",
    "dequantized_weight",
    "fake_quantize",
    "fake_quantize_activation",
    "fit_scale",
    "fit_weighted_scale",
    "grid_named",
    "integer_product",
    "least_squares_scale",
    "median_scale",
    "nearest_codes",
    "num_scales",
    "numerators_of",
    "output_dtype",
    "quantize",
    "quantize_activation",
    "quantize_weight",
    "refine_scale",
    "sqnr_db",
    "straight_through",
    "weighted_scale",
]
