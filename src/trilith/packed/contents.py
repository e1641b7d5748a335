"""A model taken apart into the tensors of a packed file."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trilith.kernels import pack_weight
from trilith.model import RMSNorm, Transformer
from trilith.packed.config import PackConfig
from trilith.packed.manifest import CodesEntry, Manifest, Part, TensorEntry, describe
from trilith.packed.precision import store_rows
from trilith.quant import BitLinear

TOKENIZER_TENSOR = "tokenizer.model"


class TokenizerParts(NamedTuple):
    """The tokenizer that travels in the file: its model's bytes and its special ids by name."""

    model_bytes: bytes
    special_ids: dict[str, int]


class Attachments(NamedTuple):
    """What a packed file carries beside the model; provenance is plain JSON."""

    tokenizer: TokenizerParts
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """Everything a packed file holds."""

    manifest: Manifest
    tensors: dict[str, Tensor]


def take_apart(model: Transformer, *, config: PackConfig, attachments: Attachments) -> Contents:
    """Turn a float32 model on the CPU into the tensors and the manifest of a packed file."""
    tensors: dict[str, Tensor] = {}
    entries: dict[str, TensorEntry] = {}

    def add(name: str, tensor: Tensor, part: Part, codes: CodesEntry | None = None) -> None:
        tensors[name] = tensor.detach().contiguous()
        entries[name] = describe(tensors[name], part=part, codes=codes)

    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            add(f"{name}.weight", module.weight.float(), "norms")
        elif isinstance(module, BitLinear):
            grid = module.config.levels
            weight = pack_weight(module.quantized_weight(), grid=grid, codec=config.codec_for(grid))
            entry = CodesEntry(grid.name, weight.codec.name, weight.shape, f"{name}.scale")
            add(f"{name}.codes", weight.packed, "codes", entry)
            add(f"{name}.scale", weight.scale, "scales")
        elif isinstance(module, nn.Linear) and name != "head":
            add(f"{name}.weight", module.weight.to(torch.bfloat16), "dense")
    rows = {"embedding": store_rows(model.embedding.weight.detach(), config.embedding_form)}
    if not model.config.tied_head:
        rows["head"] = store_rows(model.head.weight.detach(), config.head_form)
    for name, stored in rows.items():
        add(f"{name}.weight", stored.values, name)
        if stored.scale is not None:
            add(f"{name}.scale", stored.scale, name)
    tokenizer = attachments.tokenizer
    add(TOKENIZER_TENSOR, _as_tensor(tokenizer.model_bytes), "tokenizer")
    manifest = Manifest(
        model=model.config,
        activation_bits=activation_bits_of(model),
        tensors=entries,
        tokenizer_sha256=hashlib.sha256(tokenizer.model_bytes).hexdigest(),
        special_ids=dict(tokenizer.special_ids),
        provenance=attachments.provenance,
    )
    return Contents(manifest, tensors)


def activation_bits_of(model: Transformer) -> Any:
    """Return the activation bits that all BitLinears share; None for a dense model.

    Raises:
        ValueError: they differ.
    """
    found = {m.config.activation_bits for m in model.modules() if isinstance(m, BitLinear)}
    if len(found) > 1:
        raise ValueError("projections with and without int8 activations cannot share a packed file")
    return found.pop() if found else None


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
