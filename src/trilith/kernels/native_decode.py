"""The ABI of a native model: the structs of forward.h and cache.h.

What they point to must outlive them; `runtime.NativeDecoder` fills them and keeps it alive.
"""

import ctypes

from trilith.kernels.native_build import RowsStruct, WeightStruct

MLP_KINDS = ("swiglu", "relu2", "gated_relu2")

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64


class LayerStruct(ctypes.Structure):
    """`layer`: norms and biases that the model lacks are None."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("q_norm", _POINTER),
        ("k_norm", _POINTER),
        ("attention_sub_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("mlp_sub_norm", _POINTER),
        ("qkv_bias", _POINTER),
        ("qkv", WeightStruct),
        ("out", WeightStruct),
        ("up", WeightStruct),
        ("down", WeightStruct),
    )


class ModelStruct(ctypes.Structure):
    """`model`."""

    _fields_ = (
        ("num_layers", _LONG),
        ("width", _LONG),
        ("num_heads", _LONG),
        ("num_kv_heads", _LONG),
        ("head_width", _LONG),
        ("mlp_width", _LONG),
        ("vocab_size", _LONG),
        ("mlp_kind", _LONG),
        ("norm_eps", ctypes.c_float),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("embedding", RowsStruct),
        ("head", RowsStruct),
        ("norm", _POINTER),
    )


class SequenceStruct(ctypes.Structure):
    """`sequence`: the cache of one sequence; what its precision lacks is None."""

    _fields_ = (
        ("bits", _LONG),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("near", _POINTER),
        ("key_scale", _POINTER),
        ("key_zero", _POINTER),
        ("value_scale", _POINTER),
        ("value_zero", _POINTER),
        ("layer_heads", _LONG),
        ("sinks", _LONG),
        ("ring", _LONG),
        ("num_recent", _LONG),
        ("length", _LONG),
        ("num_new", _LONG),
        ("first_new", _LONG),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("sink_cos", _POINTER),
        ("sink_sin", _POINTER),
    )
