"""Kernels: packed bytes x int8 activations -> float. One reference, many speeds."""

from trilith.kernels.choice import Isa, available_isas, chosen_isa
from trilith.kernels.linear import PackedLinear
from trilith.kernels.native_path import NativeProduct, native_bytes
from trilith.kernels.reference import packed_product
from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight, pack_weight

__all__ = [
    "Isa",
    "NativeProduct",
    "PackedLinear",
    "PackedWeight",
    "TorchFloatProduct",
    "TorchProduct",
    "available_isas",
    "chosen_isa",
    "native_bytes",
    "pack_weight",
    "packed_product",
]
