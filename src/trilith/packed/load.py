"""From a packed file to a model that runs: PackedLinear projections, no gradient."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from trilith.kernels import PackedEmbedding, PackedHead, PackedLinear, StoredRows
from trilith.model import Bias, RMSNorm, Transformer, empty_model
from trilith.packed.contents import TOKENIZER_TENSOR
from trilith.packed.read import PackedFile, naming, read_packed


def load_model(path: Path) -> Transformer:
    """Read, check and build the model of a packed file, ready to run on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is foreign, damaged, or does not hold the model it describes.
    """
    return build_packed_model(read_packed(path))


def build_packed_model(
    file: PackedFile,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Transformer:
    """Build the model of a packed file that was read, to run on a device, without gradients."""
    model = _skeleton(file)
    shape, unused = file.manifest.model, dict(file.tensors)
    unused.pop(TOKENIZER_TENSOR)
    with naming(file.path):
        for name, module in list(model.named_modules()):
            if isinstance(module, (RMSNorm, Bias)):
                _fill(module, _take(unused, f"{name}.weight", torch.float32).clone())
            elif isinstance(module, nn.Linear) and f"{name}.codes" in unused:
                model.set_submodule(
                    name, _packed_linear(file, name, unused=unused, like=module, device=device)
                )
            elif isinstance(module, nn.Linear) and name != "head":
                _fill(module, _take(unused, f"{name}.weight", torch.bfloat16).float())
        embedding = _take_rows(unused, "embedding", file=file)
        head = embedding if shape.tied_head else _take_rows(unused, "head", file=file)
        if device.type == "cpu":
            model.set_submodule("embedding", PackedEmbedding(embedding))
            model.set_submodule("head", PackedHead(head))
        else:
            _fill_rows(model, embedding=embedding, head=head)
        if unused:
            raise ValueError(f"holds tensors that its model has no place for: {sorted(unused)}")
    return model.requires_grad_(False).eval().to(device)


def _skeleton(file: PackedFile) -> Transformer:
    """The model on the meta device; sizes that no tensor could have must not hang or overflow."""
    shape = file.manifest.model
    largest = max((max(tensor.shape, default=0) for tensor in file.tensors.values()), default=0)
    for key in ("vocab_size", "width", "mlp_width"):
        if getattr(shape, key) > largest * len(file.tensors):
            raise ValueError(f"{file.path} holds no tensor of the size {key} that it says")
    if shape.num_layers > len(file.tensors):
        raise ValueError(
            f"{file.path} holds {len(file.tensors)} tensors, too few for {shape.num_layers} layers"
        )
    return empty_model(shape, partial(nn.Linear, bias=False))


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
