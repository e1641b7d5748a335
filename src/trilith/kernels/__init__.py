"""Kernels: packed bytes x int8 activations -> float. One reference, many speeds."""

from trilith.kernels.linear import PackedLinear
from trilith.kernels.reference import packed_product
from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight, pack_weight

__all__ = [
    "PackedLinear",
    "PackedWeight",
    "TorchFloatProduct",
    "TorchProduct",
    "pack_weight",
    "packed_product",
]
