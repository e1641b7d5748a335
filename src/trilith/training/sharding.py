"""FSDP2: a model whose latent weights are spread over the devices, and the ways back to whole ones.

Outside a forward pass the weights of a sharded model are DTensors, of which each process holds a
share. The scales of BitLinear are buffers: whole, and the same in every process.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trilith.model import Transformer
from trilith.model.transformer import Block
from trilith.quant import BitLinear


def sharded_copy(model: Transformer, mesh: DeviceMesh) -> Transformer:
    """Return the model spread over a one-dimensional mesh; the given one stays as it is."""
    if isinstance(model, FSDPModule):
        return model
    sharded = copy.deepcopy(model)
    for block, original in zip(sharded.blocks, model.blocks, strict=True):
        if original._compiled_call_impl is not None:
            # A copy of a compiled module is not compiled.
            block.compile()
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return sharded


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


@torch.no_grad()
def refit_scales(model: Transformer) -> None:
    """Fit the scales of all layers on a grid to their weights."""
    learned: list[tuple[BitLinear, Tensor]] = []
    for block in whole_blocks(model):
        for layer in block.modules():
            if not isinstance(layer, BitLinear):
                continue
            layer.refit()
            if layer.log_scale is not None:
                learned.append((layer, layer.log_scale.clone()))
    for layer, log_scale in learned:
        # What was fitted in a block made whole is gone with it: learned scales are sharded too.
        assert layer.log_scale is not None
        layer.log_scale.copy_(share_like(log_scale, layer.log_scale))


def share_like(whole: Tensor, sharded: Tensor) -> Tensor:
    """Shard a tensor that every process has as another one is; each cuts out its own share."""
    if not isinstance(sharded, DTensor):
        return whole
    # No source rank: nothing is sent.
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)
