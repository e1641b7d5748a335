"""A model taken apart into the tensors of a packed file."""

import hashlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trilith.kernels import StoredRows, pack_weight
from trilith.model import Bias, ModelConfig, RMSNorm
from trilith.packed.config import PackConfig
from trilith.packed.manifest import CodesEntry, Manifest, Part, TensorEntry, describe
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


class Contents:
    """What a packed file holds, collected module by module."""

    def __init__(self, config: PackConfig) -> None:
        self.config = config
        self.tensors: dict[str, Tensor] = {}
        self.entries: dict[str, TensorEntry] = {}
        self._activation_bits: set[Any] = set()

    def add_modules(self, root: nn.Module, prefix: str) -> None:
        """Take norms, biases and projections, float32; `prefix` names the root in the model."""
        for name, module in root.named_modules(prefix=prefix):
            if isinstance(module, RMSNorm):
                self._add(f"{name}.weight", module.weight.float(), "norms")
            elif isinstance(module, Bias):
                self._add(f"{name}.weight", module.weight.float(), "biases")
            elif isinstance(module, BitLinear):
                self._add_codes(name, module)
            elif isinstance(module, nn.Linear):
                self._add(f"{name}.weight", module.weight.to(torch.bfloat16), "dense")

    def add_rows(self, rows: StoredRows, name: Literal["embedding", "head"]) -> None:
        """Take an embedding or a head."""
        self._add(f"{name}.weight", rows.values, name)
        if rows.scale is not None:
            self._add(f"{name}.scale", rows.scale, name)

    def manifest(self, model: ModelConfig, attachments: Attachments) -> Manifest:
        """Take the attachments, and say what all of it is.

        Raises:
            ValueError: projections differ in their activations.
        """
        if len(self._activation_bits) > 1:
            raise ValueError(
                "projections with and without int8 activations cannot share a packed file"
            )
        tokenizer = attachments.tokenizer
        self._add(TOKENIZER_TENSOR, _as_tensor(tokenizer.model_bytes), "tokenizer")
        return Manifest(
            model=model,
            activation_bits=next(iter(self._activation_bits), None),
            tensors=self.entries,
            tokenizer_sha256=hashlib.sha256(tokenizer.model_bytes).hexdigest(),
            special_ids=dict(tokenizer.special_ids),
            provenance=attachments.provenance,
        )

    def _add_codes(self, name: str, layer: BitLinear) -> None:
        grid = layer.config.levels
        codec = self.config.codec_for(grid)
        weight = pack_weight(layer.quantized_weight(), grid=grid, codec=codec)
        entry = CodesEntry(grid.name, codec.name, weight.shape, f"{name}.scale")
        self._add(f"{name}.codes", weight.packed, "codes", entry)
        self._add(f"{name}.scale", weight.scale, "scales")
        self._activation_bits.add(layer.config.activation_bits)

    def _add(self, name: str, tensor: Tensor, part: Part, codes: CodesEntry | None = None) -> None:
        # A copy where the module's own tensor would be kept.
        self.tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.entries[name] = describe(self.tensors[name], part=part, codes=codes)


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
