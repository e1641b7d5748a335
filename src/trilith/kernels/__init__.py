"""Kernels: packed bytes x int8 activations -> float. One reference, many speeds."""

from trilith.kernels.arithmetic import (
    BFloat16Arithmetic,
    NativeArithmetic,
    TensorCoreArithmetic,
    fastest_arithmetic,
)
from trilith.kernels.choice import Isa, available_isas, chosen_isa
from trilith.kernels.linear import PackedLinear
from trilith.kernels.native_path import (
    NativeProduct,
    layout_in_memory,
    layouts_for,
    native_bytes,
)
from trilith.kernels.reference import packed_product
from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight, pack_weight

__all__ = [
    "BFloat16Arithmetic",
    "Isa",
    "NativeArithmetic",
    "NativeProduct",
    "PackedLinear",
    "PackedWeight",
    "TensorCoreArithmetic",
    "TorchFloatProduct",
    "TorchProduct",
    "available_isas",
    "chosen_isa",
    "fastest_arithmetic",
    "layout_in_memory",
    "layouts_for",
    "native_bytes",
    "pack_weight",
    "packed_product",
]
