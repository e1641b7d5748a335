"""Decoding in one C call per token: what lies between the products costs Python more than they do.

Axes: B batch, V vocabulary, D width.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trilith.kernels import Isa, NativeProduct, PackedLinear, multiply_rows
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
from trilith.model.transformer import Block
from trilith.packed import PackedFile


class NativeDecoder:
    """One decoding step of a packed model whose projections are all native.

    Differs from the torch modules in the order of float32 sums alone; embedding and head are read
    in their stored precision.
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
        layers = [_layer_struct(block) for block in model.blocks]  # type: ignore[arg-type]
        self._layers = (LayerStruct * len(layers))(*layers)
        self._struct = self._model_struct()
        self._isa: Isa = model.blocks[0].attention.out.product.isa  # type: ignore[union-attr, assignment]

    def logits(self, hidden_BD: Tensor) -> Tensor:
        """Return the logits [B, V] of what the head reads."""
        return multiply_rows(hidden_BD.float().contiguous(), rows=self._head, isa=self._isa)

    def step(self, tokens_B: Tensor, *, caches: Sequence[KVCache]) -> Tensor:
        """Add one token to each sequence; return the logits [B, V] of what follows.

        The sequences are those of the caches in turn; each is computed as it would be alone.
        """
        config = self._model.config
        assert len(tokens_B) == sum(cache.batch_size for cache in caches), tokens_B.shape
        ids = tokens_B.tolist()
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            raise IndexError(f"token ids {ids} are not in 0..{config.vocab_size - 1}")
        for cache in caches:
            cache.require_room(1)
        tokens_B = tokens_B.long().contiguous()
        logits_BV = torch.empty(len(tokens_B), config.vocab_size)
        # The structs point into the tables, which must live until the call returns.
        tables = [self._rope_rows(cache) for cache in caches]
        structs = [
            struct
            for cache, rows in zip(caches, tables, strict=True)
            for struct in _sequence_structs(cache, [row.data_ptr() for row in rows])
        ]
        library = load_native().library
        assert library is not None
        failed = library.trilith_decode(
            ctypes.byref(self._struct),
            (SequenceStruct * len(structs))(*structs),
            len(structs),
            tokens_B.data_ptr(),
            logits_BV.data_ptr(),
            self._isa.number,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a decoding step of {len(tokens_B)} sequences")
        for cache in caches:
            cache.advance(1)
        return logits_BV

    def _rope_rows(self, cache: KVCache) -> list[Tensor]:
        """Cosines and sines of the next token, then those of its place in the window."""
        here, inside = cache.length, min(cache.length, cache.capacity - 1)
        config = self._model.config
        if here < config.context:
            own = [table[here] for table in self._rope]
        else:
            position = cache.positions(1)
            own = list(rope_tables(position, config.head_width, config.rope_theta))
        return [*own, *(table[inside] for table in self._rope)]

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


def _sequence_structs(cache: KVCache, rope: Sequence[int]) -> list[SequenceStruct]:
    """What the C functions take of each sequence of a cache."""
    keys, values = cache.keys, cache.values
    heads = cache.model.num_kv_heads
    # In the order of the struct: keys, values, near, scale and zero of both.
    tensors: list[Tensor | None] = [keys.tensors[0], values.tensors[0], *[None] * 5]
    if isinstance(keys, KeyBlocks) and isinstance(values, ValueRows):
        tensors[2:] = [keys.near, keys.scale, keys.zero, values.scale, values.zero]
    starts = [None if x is None else x.data_ptr() for x in tensors]
    steps = [0 if x is None else heads * x.stride(2) * x.element_size() for x in tensors]
    about = (heads * cache.batch_size, cache.sinks, keys.ring.size, cache.num_recent, cache.length)
    return [
        SequenceStruct(
            cache.config.bits,
            *(
                None if start is None else start + b * step
                for start, step in zip(starts, steps, strict=True)
            ),
            *about,
            *rope,
        )
        for b in range(cache.batch_size)
    ]


def decodes_natively(model: Transformer) -> bool:
    """True if every projection runs on native kernels."""
    projections = [
        linear
        for block in model.blocks
        for linear in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down)  # type: ignore[union-attr]
    ]
    return all(
        isinstance(linear, PackedLinear) and isinstance(linear.product, NativeProduct)
        for linear in projections
    )


def _layer_struct(block: Block) -> LayerStruct:
    attention, mlp = block.attention, block.mlp
    floats = (
        block.attention_norm,
        attention.q_norm,
        attention.k_norm,
        attention.sub_norm,
        block.mlp_norm,
        mlp.sub_norm,
        attention.qkv_bias,
    )
    linears = (attention.qkv, attention.out, mlp.up, mlp.down)
    return LayerStruct(
        *(_pointer(module) for module in floats),
        *(linear.product.as_struct() for linear in linears),  # type: ignore[union-attr, operator]
    )


def _pointer(module: nn.Module) -> int | None:
    return module.weight.data_ptr() if isinstance(module, (RMSNorm, Bias)) else None
