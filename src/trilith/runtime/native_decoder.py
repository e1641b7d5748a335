"""Prompts and decoding steps in one C call each: what lies between the products costs Python more
than they do.

Axes: B batch, T new tokens, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trilith.kernels import Isa, NativeProduct, PackedLinear, chosen_isa, dense_struct
from trilith.kernels.native_build import load_native
from trilith.kernels.native_decode import (
    MLP_KINDS,
    LayerStruct,
    ModelStruct,
    SequenceStruct,
)
from trilith.model import Bias, KVCache, RMSNorm, Transformer
from trilith.model.cache_storage import KeyBlocks, ValueRows
from trilith.model.rope import rope_tables
from trilith.packed import PackedFile

# Of a block, in the order of its struct; those that it lacks are identities.
_FLOATS = (
    *("attention_norm", "attention.q_norm", "attention.k_norm", "attention.sub_norm"),
    *("mlp_norm", "mlp.sub_norm", "attention.qkv_bias"),
)
_LINEARS = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")


class NewTokens(NamedTuple):
    """New tokens of the sequences of one cache: int64 [B, T], T of them at least 1."""

    tokens_BT: Tensor
    cache: KVCache


class NativeDecoder:
    """Runs a packed model whose projections are all native, or dense.

    A token has the same logits, to the bit, whatever runs beside it, and whether the tokens before
    it came with it or earlier. They differ from those of the torch modules in the order of float32
    sums alone; and those take a prompt's own keys and values as they are, where this has what the
    cache will keep of them. Embedding and head are read in their stored precision.
    """

    def __init__(self, model: Transformer, *, file: PackedFile) -> None:
        self._model = model
        # The structs point into these; a model that is converted later lets go of them.
        self._kept = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        self._embedding = file.stored_rows("embedding")
        self._head = file.stored_head()
        self._rope = rope_tables(
            torch.arange(model.config.context), model.config.head_width, model.config.rope_theta
        )
        self._dense = None if _is_packed(model) else file.tensors
        layers = [self._layer_struct(number) for number in range(len(model.blocks))]
        self._layers = (LayerStruct * len(layers))(*layers)
        self._struct = self._model_struct()
        self._structs: WeakKeyDictionary[KVCache, ctypes.Array[SequenceStruct]]
        self._structs = WeakKeyDictionary()
        self._isa = _isa_of(model)

    @property
    def runs_prompts(self) -> bool:
        """False for a dense model: torch multiplies matrices of floats faster."""
        return self._dense is None

    def run(self, parts: Sequence[NewTokens]) -> Tensor:
        """Add tokens to the sequences of each cache; return the logits [B, V] after the last ones.

        Raises:
            IndexError: an id is none of the model's.
            ValueError: a cache has no room.
            MemoryError: the system has none.
        """
        config = self._model.config
        ids = [token for part in parts for row in part.tokens_BT.tolist() for token in row]
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            raise IndexError(f"token ids {ids} are not in 0..{config.vocab_size - 1}")
        for part in parts:
            part.cache.require_room(part.tokens_BT.shape[1])
        # The structs point into tables that are made for this call.
        made: list[Tensor] = []
        arrays, first_new = [], 0
        for part in parts:
            arrays.append(self._describe(part, first_new=first_new, made=made))
            first_new += part.tokens_BT.numel()
        structs = arrays[0] if len(arrays) == 1 else _joined(arrays)
        logits_BV = self._call(structs, ids)
        for part in parts:
            part.cache.advance(part.tokens_BT.shape[1])
        return logits_BV

    def _call(self, structs: "ctypes.Array[SequenceStruct]", ids: list[int]) -> Tensor:
        library = load_native().library
        assert library is not None
        threads = torch.get_num_threads()
        model = ctypes.byref(self._struct)
        num_bytes = library.trilith_forward_bytes(model, len(ids), threads)
        room = torch.empty(num_bytes, dtype=torch.uint8)
        logits_BV = torch.empty(len(structs), self._model.config.vocab_size)
        failed = library.trilith_forward(
            model,
            structs,
            len(structs),
            (ctypes.c_int64 * len(ids))(*ids),
            room.data_ptr(),
            logits_BV.data_ptr(),
            self._isa.number,
            threads,
        )
        if failed:
            raise MemoryError(f"no memory for {len(ids)} tokens of {len(structs)} sequences")
        return logits_BV

    def _describe(
        self, part: NewTokens, *, first_new: int, made: list[Tensor]
    ) -> "ctypes.Array[SequenceStruct]":
        """What the C functions take of a cache: where it lies stays, the rest is new."""
        cache, num_new = part.cache, part.tokens_BT.shape[1]
        structs = self._structs.get(cache)
        if structs is None:
            structs = self._structs[cache] = _sequence_structs(cache)
        rope = self._rope_rows(cache, num_new, made)
        for b, struct in enumerate(structs):
            struct.length, struct.num_new = cache.length, num_new
            struct.first_new = first_new + b * num_new
            struct.cos, struct.sin, struct.sink_cos, struct.sink_sin = rope
        return structs

    def _rope_rows(self, cache: KVCache, num_new: int, made: list[Tensor]) -> list[int]:
        """Where cosines and sines of the next tokens lie, then those of their window places."""
        here, end = cache.length, cache.length + num_new
        config = self._model.config
        if end <= config.context:
            own = self._table_rows(here)
        else:
            made += rope_tables(cache.positions(num_new), config.head_width, config.rope_theta)
            own = [table.data_ptr() for table in made[-2:]]
        if end <= cache.capacity or num_new == 1:
            return [*own, *self._table_rows(min(here, cache.capacity - 1))]
        inside = torch.arange(here, end).clamp(max=cache.capacity - 1)
        made += (table[inside] for table in self._rope)
        return [*own, *(table.data_ptr() for table in made[-2:])]

    def _table_rows(self, first: int) -> list[int]:
        offset = first * self._rope[0].stride(0) * self._rope[0].element_size()
        return [table.data_ptr() + offset for table in self._rope]

    def _layer_struct(self, number: int) -> LayerStruct:
        block = self._model.blocks[number]
        pointers = (_pointer(block.get_submodule(name)) for name in _FLOATS)
        if self._dense is None:
            weights = [block.get_submodule(name).product.as_struct() for name in _LINEARS]  # type: ignore[union-attr, operator]
        else:
            names = (f"blocks.{number}.{name}.weight" for name in _LINEARS)
            weights = [dense_struct(self._dense[name]) for name in names]
        return LayerStruct(*pointers, *weights)

    def _model_struct(self) -> ModelStruct:
        config = self._model.config
        return ModelStruct(
            config.num_layers,
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.head_width,
            config.mlp_width,
            config.vocab_size,
            MLP_KINDS.index(config.mlp),
            config.norm_eps,
            self._layers,
            self._embedding.as_struct(),
            self._head.as_struct(),
            self._model.norm.weight.data_ptr(),
        )


def _sequence_structs(cache: KVCache) -> "ctypes.Array[SequenceStruct]":
    """Where each sequence of a cache lies."""
    keys, values = cache.keys, cache.values
    heads = cache.model.num_kv_heads
    # In the order of the struct: keys, values, near, scale and zero of both.
    tensors: list[Tensor | None] = [keys.tensors[0], values.tensors[0], *[None] * 5]
    if isinstance(keys, KeyBlocks) and isinstance(values, ValueRows):
        tensors[2:] = [keys.near, keys.scale, keys.zero, values.scale, values.zero]
    starts = [None if x is None else x.data_ptr() for x in tensors]
    steps = [0 if x is None else heads * x.stride(2) * x.element_size() for x in tensors]
    about = (heads * cache.batch_size, cache.sinks, keys.ring.size, cache.num_recent)
    structs = (SequenceStruct * cache.batch_size)()
    for b in range(cache.batch_size):
        placed = (
            None if start is None else start + b * step
            for start, step in zip(starts, steps, strict=True)
        )
        structs[b] = SequenceStruct(cache.config.bits, *placed, *about)
    return structs


def _joined(
    arrays: "Sequence[ctypes.Array[SequenceStruct]]",
) -> "ctypes.Array[SequenceStruct]":
    structs = [struct for array in arrays for struct in array]
    return (SequenceStruct * len(structs))(*structs)


def decodes_natively(model: Transformer) -> bool:
    """True if every projection runs on native kernels, or all are dense and there are such."""
    if _is_packed(model):
        return True
    is_dense = all(isinstance(linear, nn.Linear) for linear in _linears(model))
    return is_dense and model.norm.weight.is_cpu and chosen_isa() is not None


def _is_packed(model: Transformer) -> bool:
    return all(
        isinstance(linear, PackedLinear) and isinstance(linear.product, NativeProduct)
        for linear in _linears(model)
    )


def _isa_of(model: Transformer) -> Isa:
    product = getattr(_linears(model)[0], "product", None)
    isa = chosen_isa() if product is None else product.isa
    assert isa is not None
    return isa


def _linears(model: Transformer) -> list[nn.Module]:
    return [block.get_submodule(name) for block in model.blocks for name in _LINEARS]


def _pointer(module: nn.Module) -> int | None:
    return module.weight.data_ptr() if isinstance(module, (RMSNorm, Bias)) else None
