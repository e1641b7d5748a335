"""From a packed file to a model that runs: PackedLinear projections, no gradient."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from trilith.kernels import PackedEmbedding, PackedHead, PackedLinear, StoredRows
from trilith.model import Bias, Block, RMSNorm, Transformer, empty_model, without_memory
from trilith.packed.contents import TOKENIZER_TENSOR
from trilith.packed.read import PackedFile, naming, read_packed


def load_model(path: Path) -> Transformer:
    """Read, check and build the model of a packed file, ready to run on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is foreign, damaged, or does not hold the model it describes.
    """
    return build_packed_model(read_packed(path))


_CPU = torch.device("cpu")


def build_packed_model(file: PackedFile, *, device: torch.device = _CPU) -> Transformer:
    """Build the model of a packed file that was read, to run on a device, without gradients."""
    return _filled(_skeleton(file), file, tensors=dict(file.tensors), device=device)


def build_outer_model(file: PackedFile) -> Transformer:
    """Build what lies around the blocks, on the CPU; of those there are none."""
    model = _skeleton(file)
    model.blocks = nn.ModuleList()
    outer = {name: x for name, x in file.tensors.items() if not name.startswith("blocks.")}
    return _filled(model, file, tensors=outer, device=_CPU)


def build_packed_block(file: PackedFile, layer: int) -> Block:
    """Build one block of the model, on the CPU."""
    prefix = f"blocks.{layer}."
    with without_memory():
        block = Block(file.manifest.model, layer=layer, linear=partial(nn.Linear, bias=False))
    tensors = {name: x for name, x in file.tensors.items() if name.startswith(prefix)}
    with naming(file.path):
        _fill_modules(block, prefix, file=file, unused=tensors, device=_CPU)
    return block.requires_grad_(False).eval()


def _filled(
    model: Transformer, file: PackedFile, *, tensors: dict[str, Tensor], device: torch.device
) -> Transformer:
    """Fill a skeleton with tensors, all of which must have their place."""
    tensors.pop(TOKENIZER_TENSOR)
    with naming(file.path):
        _fill_modules(model, "", file=file, unused=tensors, device=device)
        embedding = _take_rows(tensors, "embedding", file=file)
        is_tied = file.manifest.model.tied_head
        head = embedding if is_tied else _take_rows(tensors, "head", file=file)
        if device.type == "cpu":
            model.set_submodule("embedding", PackedEmbedding(embedding))
            model.set_submodule("head", PackedHead(head))
        else:
            _fill_rows(model, embedding=embedding, head=head)
        if tensors:
            raise ValueError(f"holds tensors that its model has no place for: {sorted(tensors)}")
    return model.requires_grad_(False).eval().to(device)


def _fill_modules(
    root: nn.Module,
    prefix: str,
    *,
    file: PackedFile,
    unused: dict[str, Tensor],
    device: torch.device,
) -> None:
    """Fill what has weights below `root`, whose names in the file begin with `prefix`."""
    for name, module in list(root.named_modules()):
        full = f"{prefix}{name}"
        if isinstance(module, (RMSNorm, Bias)):
            _fill(module, _take(unused, f"{full}.weight", torch.float32).clone())
        elif isinstance(module, nn.Linear) and f"{full}.codes" in unused:
            linear = _packed_linear(file, full, unused=unused, like=module, device=device)
            root.set_submodule(name, linear)
        elif isinstance(module, nn.Linear) and full != "head":
            _fill(module, _take(unused, f"{full}.weight", torch.bfloat16).float())


def _skeleton(file: PackedFile) -> Transformer:
    """The model on the meta device; a file that was opened has room for what it says."""
    return empty_model(file.manifest.model, partial(nn.Linear, bias=False))


def _packed_linear(
    file: PackedFile, name: str, *, unused: dict[str, Tensor], like: nn.Linear, device: torch.device
) -> PackedLinear:
    weight = file.packed_weight(name)
    _require_shape(weight.shape, like.weight.shape)
    unused.pop(f"{name}.codes")
    num_weights = sum(math.prod(e.codes.shape) for e in file.manifest.tensors.values() if e.codes)
    unused.pop(file.manifest.tensors[f"{name}.codes"].codes.scale)  # type: ignore[union-attr]
    bits = file.manifest.activation_bits
    linear = PackedLinear(weight, activation_bits=bits, num_weights=num_weights, device=device)
    file.let_go(weight.packed)
    return linear


def _take_rows(unused: dict[str, Tensor], name: str, *, file: PackedFile) -> StoredRows:
    rows = file.stored_rows(name)
    _require_shape(rows.shape, (file.manifest.model.vocab_size, rows.width))
    for key in ("weight", "scale"):
        unused.pop(f"{name}.{key}", None)
    return rows


def _fill_rows(model: Transformer, *, embedding: StoredRows, head: StoredRows) -> None:
    """Keep rows in floats: on a GPU, to restore codes would stop a CUDA graph."""
    _fill(model.embedding, embedding.restore())
    if head is embedding:
        model.head.weight = model.embedding.weight
    else:
        _fill(model.head, head.restore())


def _take(unused: dict[str, Tensor], name: str, *dtypes: torch.dtype) -> Tensor:
    tensor = unused.pop(name, None)
    if tensor is None:
        raise ValueError(f"lacks {name}, which its model needs; pack the model again")
    if tensor.dtype not in dtypes:
        raise ValueError(f"holds {name} as {tensor.dtype}, expected {dtypes}; pack it again")
    return tensor


def _fill(module: nn.Module, weight: Tensor) -> None:
    assert isinstance(module.weight, nn.Parameter)
    _require_shape(weight.shape, module.weight.shape)
    module.weight = nn.Parameter(weight, requires_grad=False)


def _require_shape(found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"holds a tensor {list(found)} where its model has {list(expected)}; pack it again"
        )
