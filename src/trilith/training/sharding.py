"""FSDP2: a model whose latent weights are spread over the devices, and the ways back to whole ones.

Outside a forward pass the weights of a sharded model are DTensors, of which each process holds a
share. The scales of BitLinear are buffers: whole, and the same in every process.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from trilith.model import Transformer
from trilith.model.transformer import Block


def sharded_copy(model: Transformer, mesh: DeviceMesh) -> Transformer:
    """Return the model spread over a one-dimensional mesh; the given one stays as it is."""
    if isinstance(model, FSDPModule):
        return model
    model = copy.deepcopy(model)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@torch.no_grad()
def copy_weights(source: Transformer, target: Transformer) -> None:
    """Copy weights and scales of a sharded model into a whole one, in every process."""
    whole = target.state_dict()
    for name, tensor in source.state_dict().items():
        whole[name].copy_(gathered(tensor))


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; all processes must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_blocks(model: Transformer) -> Iterator[Block]:
    """Give the blocks in order; each has whole weights until the next is asked for."""
    for block in model.blocks:
        assert isinstance(block, Block)
        if not isinstance(block, FSDPModule):
            yield block
            continue
        block.unshard()
        yield block
        block.reshard()


def is_sharded(state: Any) -> bool:
    """True if a state dict holds shares of tensors."""
    if isinstance(state, dict):
        return any(is_sharded(value) for value in state.values())
    return isinstance(state, DTensor)
