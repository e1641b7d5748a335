"""llama2.c files: float32, legacy or version 1, and the ternary files that bitllama2.c derives.

All hold a header of seven integers, then tensors in a fixed order (llama2.c export.py and run.c;
bitllama2.c runbit.c). Nothing in the file tells ternary from float32 but its size.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trilith.imports.layers import LayerWeights, fuse, halves_from_pairs
from trilith.imports.licence import licence_beside
from trilith.imports.llama2c_tokenizer import find_tokenizer
from trilith.imports.source import (
    Source,
    State,
    fresh_provenance,
    plain_name,
    require_tokenizer_size,
)
from trilith.imports.ternary_codes import read_ternary_codes, scale_and_gain
from trilith.model import ModelConfig
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer

_MAGIC = b"24ka"
_LEGACY_HEADER_BYTES = 28
_HEADER_BYTES = 256
_MAX_DIMENSION = 1 << 24
_ROPE_THETA = 10_000.0
_NORM_EPS = 1e-5
# bitllama2.c normalizes inputs of projections without one (mean squares go below 1e-12), and the
# head's with 1e-5. Ours has one for all: of the head's, 4e-5 nats of loss are left (bitllama-1M).
_TERNARY_NORM_EPS = 1e-20

# As bitllama2.c computes: a scale a matrix, which fused projections hold a row, and int8 tokens.
_TERNARY = QuantConfig("ternary", "least_squares", "row", None, 8)


@dataclass(frozen=True)
class _Header:
    """What the file says before its weights."""

    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    context: int
    tied_head: bool
    num_bytes: int

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shape [O, I] of the projections of a layer, in llama2.c's words and order."""
        kv_width = self.num_kv_heads * self.head_width
        return {
            "wq": (self.width, self.width),
            "wk": (kv_width, self.width),
            "wv": (kv_width, self.width),
            "wo": (self.width, self.width),
            "w1": (self.mlp_width, self.width),
            "w2": (self.width, self.mlp_width),
            "w3": (self.mlp_width, self.width),
        }


class _Variant(NamedTuple):
    """One of the three contents that a file may have, told by its bytes."""

    kind: str
    stored: str
    num_bytes: int
    read: Callable[[Path, _Header], State]


def open_llama2c(path: Path, *, tokenizer: Path | None) -> Source:
    """Open a llama2.c or bitllama2.c weight file.

    Args:
        path: the weights.
        tokenizer: `tokenizer.bin` or a SentencePiece model; None looks beside the weights.

    Raises:
        FileNotFoundError: no tokenizer lies beside the weights.
        ValueError: the file is cut or no such file, or the tokenizer is another model's.
    """
    header = _read_header(path)
    variant = _variant(path, header)
    is_ternary = variant.read is _read_ternary
    model = ModelConfig(
        name=plain_name(path.stem),
        vocab_size=header.vocab_size,
        width=header.width,
        num_layers=header.num_layers,
        num_heads=header.num_heads,
        num_kv_heads=header.num_kv_heads,
        mlp="swiglu",
        mlp_width=header.mlp_width,
        context=header.context,
        rope_theta=_ROPE_THETA,
        norm_eps=_TERNARY_NORM_EPS if is_ternary else _NORM_EPS,
        qk_norm=False,
        sub_norm=is_ternary,
        tied_head=header.tied_head,
    )
    content = find_tokenizer(path, vocab_size=header.vocab_size, given=tokenizer)
    found = Tokenizer(content, origin=f"the tokenizer of {path}")
    require_tokenizer_size(found, rows=header.vocab_size, origin=path)
    return Source(
        kind=variant.kind,
        path=path,
        model=model,
        quant=_TERNARY if is_ternary else None,
        stored=variant.stored,
        weight_files=(path,),
        tokenizer=content,
        tokenizer_sha256=found.sha256,
        provenance=fresh_provenance(model.name),
        licence=licence_beside(path),
        read=partial(variant.read, path, header),
    )


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    is_legacy = not start.startswith(_MAGIC)
    place = 0 if is_legacy else 8
    if len(start) < place + _LEGACY_HEADER_BYTES:
        raise ValueError(f"{path} has {len(start)} bytes, too few for llama2.c; copy it again")
    version = 0 if is_legacy else struct.unpack_from("<i", start, 4)[0]
    if version not in (0, 1):
        raise ValueError(
            f"{path} has llama2.c version {version} (int8); export it as version 0 or 1 (float32)"
        )
    values = struct.unpack_from("<7i", start, place)
    width, mlp_width, num_layers, num_heads, num_kv_heads, vocab_size, context = values
    # Legacy files say by a negative vocabulary that the head is a matrix of its own.
    tied_head = vocab_size > 0 if is_legacy else len(start) > 36 and bool(start[36])
    if not all(0 < value < _MAX_DIMENSION for value in (*values[:5], abs(vocab_size), context)):
        raise ValueError(
            f"{path} is no llama2.c file: its header gives the sizes {list(values)}; "
            "give a .bin of llama2.c, a Hugging Face folder, or a packed file"
        )
    num_bytes = _LEGACY_HEADER_BYTES if is_legacy else _HEADER_BYTES
    return _Header(
        width=width,
        mlp_width=mlp_width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        vocab_size=abs(vocab_size),
        context=context,
        tied_head=tied_head,
        num_bytes=num_bytes,
    )


def _variant(path: Path, header: _Header) -> _Variant:
    """Tell by the file's size what it holds."""
    legacy = header.num_bytes == _LEGACY_HEADER_BYTES
    numbers = sum(4 * _num_floats(shape) for _, shape in _float_tensors(header))
    variants = [_Variant("llama2.c", "float32", header.num_bytes + numbers, _read_floats)]
    if not legacy and header.tied_head:
        codes = sum(4 + o * i // 4 for o, i in header.matrices().values()) * header.num_layers
        floats = 4 * header.width * (1 + header.vocab_size)
        size = header.num_bytes + floats + codes
        variants.append(_Variant("bitllama2.c", "ternary codes of 2 bits", size, _read_ternary))
    found = path.stat().st_size
    for variant in variants:
        if variant.num_bytes == found:
            return variant
    expected = " or ".join(f"{v.num_bytes} ({v.kind}, {v.stored})" for v in variants)
    raise ValueError(
        f"{path} has {found} bytes, and a model of the sizes in its header {expected}: it is cut "
        "or of another format; copy it again"
    )


def _float_tensors(header: _Header) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of a float32 file, in the file's order."""
    layers, width = header.num_layers, header.width
    embedding = ("embedding", (header.vocab_size, width))
    norms = [(name, (layers, width)) for name in ("attention_norm", "mlp_norm")]
    stacks = [(name, (layers, *shape)) for name, shape in header.matrices().items()]
    final = ("norm", (width,))
    head = [] if header.tied_head else [("head", (header.vocab_size, width))]
    if header.num_bytes == _HEADER_BYTES:
        return [*norms, final, embedding, *stacks, *head]
    tables = [(name, (header.context, header.head_width // 2)) for name in ("cos", "sin")]
    attention, mlp = stacks[:4], stacks[4:]
    return [embedding, norms[0], *attention, norms[1], *mlp, final, *tables, *head]


def _read_floats(path: Path, header: _Header) -> State:
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        file.seek(header.num_bytes)
        for name, shape in _float_tensors(header):
            tensors[name] = _floats(np.fromfile(file, "<f4", _num_floats(shape)), shape)
    stacks = header.matrices()
    state = {"embedding.weight": tensors["embedding"], "norm.weight": tensors["norm"]}
    if not header.tied_head:
        state["head.weight"] = tensors["head"]
    for layer in range(header.num_layers):
        at = {name: tensors[name][layer] for name in ("attention_norm", "mlp_norm", *stacks)}
        state |= _block(at, header, layer)
    return state


def _read_ternary(path: Path, header: _Header) -> State:
    """Weights of a bitllama2.c file, with the scales and gains that make ours compute the same."""
    width = header.width
    with path.open("rb") as file:
        file.seek(header.num_bytes)
        norm = _floats(np.fromfile(file, "<f4", width), (width,))
        shape = (header.vocab_size, width)
        embedding = _floats(np.fromfile(file, "<f4", _num_floats(shape)), shape)
        stacks = {
            name: [read_ternary_codes(file, matrix) for _ in range(header.num_layers)]
            for name, matrix in header.matrices().items()
        }
    state = {"embedding.weight": embedding, "norm.weight": norm}
    for layer in range(header.num_layers):
        at: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        gains: dict[str, Tensor] = {}
        for name, stack in stacks.items():
            scales[name], gains[name] = scale_and_gain(stack[layer])
            at[name] = stack[layer].codes * scales[name]
        norms = {"attention_norm": gains["wq"], "mlp_norm": gains["w1"]}
        state |= _block(at | norms, header, layer)
        fused = {
            "attention.sub_norm.weight": gains["wo"],
            "mlp.sub_norm.weight": gains["w2"],
            "attention.qkv.scale": torch.cat([scales["wq"], scales["wk"], scales["wv"]]),
            "attention.out.scale": scales["wo"],
            "mlp.up.scale": torch.cat([scales["w1"], scales["w3"]]),
            "mlp.down.scale": scales["w2"],
        }
        state |= {f"blocks.{layer}.{name}": tensor for name, tensor in fused.items()}
    return state


def _block(at: dict[str, Tensor], header: _Header, layer: int) -> State:
    weights = LayerWeights(
        query=halves_from_pairs(at["wq"], header.num_heads),
        key=halves_from_pairs(at["wk"], header.num_kv_heads),
        value=at["wv"],
        out=at["wo"],
        gate=at["w1"],
        up=at["w3"],
        down=at["w2"],
        attention_norm=at["attention_norm"],
        mlp_norm=at["mlp_norm"],
    )
    return fuse(weights, layer)


def _floats(numbers: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32)).view(shape)


def _num_floats(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
