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
    dense_struct,
    layout_in_memory,
    layouts_for,
    native_bytes,
)
from trilith.kernels.reference import packed_product
from trilith.kernels.rows import (
    GROUP_MULTIPLE,
    RESTORED_VALUES,
    ROW_CODECS,
    ROW_GRIDS,
    PackedEmbedding,
    PackedHead,
    StoredRows,
    multiply_rows,
)
from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight, pack_weight

__all__ = [
    "GROUP_MULTIPLE",
    "RESTORED_VALUES",
    "ROW_CODECS",
    "ROW_GRIDS",
    "BFloat16Arithmetic",
    "Isa",
    "NativeArithmetic",
    "NativeProduct",
    "PackedEmbedding",
    "PackedHead",
    "PackedLinear",
    "PackedWeight",
    "StoredRows",
    "TensorCoreArithmetic",
    "TorchFloatProduct",
    "TorchProduct",
    "available_isas",
    "chosen_isa",
    "dense_struct",
    "fastest_arithmetic",
    "layout_in_memory",
    "layouts_for",
    "multiply_rows",
    "native_bytes",
    "pack_weight",
    "packed_product",
]
