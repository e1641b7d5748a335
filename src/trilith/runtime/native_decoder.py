"""Decoding in one C call per token: what lies between the products costs Python more than they do.

Axes: B batch, V vocabulary, D width.
"""

import ctypes

import torch
from torch import Tensor, nn

from trilith.kernels import Isa, NativeProduct, PackedLinear, multiply_rows
from trilith.kernels.native_build import load_native
from trilith.kernels.native_decode import (
    MLP_KINDS,
    CacheStruct,
    LayerStruct,
    ModelStruct,
)
from trilith.model import Bias, KVCache, RMSNorm, Transformer
from trilith.model.attention import rope_tables
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

    def step(self, tokens_B: Tensor, *, cache: KVCache) -> Tensor:
        """Add one token to each sequence; return the logits [B, V] of what follows."""
        config = self._model.config
        assert tokens_B.shape == (cache.keys.shape[1],), tokens_B.shape
        if int(tokens_B.min()) < 0 or int(tokens_B.max()) >= config.vocab_size:
            raise IndexError(f"token ids {tokens_B.tolist()} are not in 0..{config.vocab_size - 1}")
        cache.require_room(1)
        tokens_B = tokens_B.long().contiguous()
        logits_BV = torch.empty(len(tokens_B), config.vocab_size)
        seen = CacheStruct(
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            len(tokens_B),
            cache.capacity,
            cache.length,
        )
        library = load_native().library
        assert library is not None
        failed = library.trilith_decode(
            ctypes.byref(self._struct),
            ctypes.byref(seen),
            tokens_B.data_ptr(),
            logits_BV.data_ptr(),
            self._isa.number,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a decoding step of {len(tokens_B)} sequences")
        cache.advance(1)
        return logits_BV

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
            self._rope[0].data_ptr(),
            self._rope[1].data_ptr(),
        )


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
