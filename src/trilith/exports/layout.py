"""Which architecture of a format is our model, and what the format calls each of its pieces.

Four of our shapes have a counterpart: Llama's, Llama with biases of queries, keys and values
(Qwen 2) or with norms of queries and keys (Qwen 3), and Llama with SubLN (BitNet b1.58). All others
are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trilith.exports.matrices import Matrix, pairs_from_halves, projection, rows_of
from trilith.model import ModelConfig
from trilith.packed import PackedFile

Kind = Literal["llama", "qkv_bias", "qk_norm", "sub_norm"]


@dataclass(frozen=True)
class Layout:
    """An architecture's name and its names for our pieces.

    `rope` says which features it turns together: (i, i + C / 2) as ours, or (2i, 2i + 1).
    `layer` is the prefix of a layer's pieces, with {} for its number.
    """

    architecture: str
    rope: Literal["halves", "pairs"]
    embedding: str
    norm: str
    head: str
    layer: str
    pieces: dict[str, str]


class Piece(NamedTuple):
    """One tensor of an export: a matrix, or a float32 norm or bias."""

    name: str
    content: Matrix | Tensor


def kind_of(model: ModelConfig, *, target: str) -> Kind:
    """Tell which of the exportable shapes a model has.

    Raises:
        ValueError: `target` has no architecture of this shape; the text says what to change.
    """
    if model.qk_norm and model.sub_norm:
        raise ValueError(
            f"model {model.name} has qk_norm and sub_norm, and no architecture of {target} has "
            "both; neither norm can be folded into weights, so train with model.qk_norm=false or "
            "model.sub_norm=false"
        )
    if model.qkv_bias and (model.qk_norm or model.sub_norm):
        raise ValueError(
            f"model {model.name} has qkv_bias and norms inside its blocks, and no architecture of "
            f"{target} has both without a bias on the output of attention; train without the norms"
        )
    if not model.is_gated:
        raise ValueError(
            f"model {model.name} has mlp={model.mlp}, which has no gate, and no architecture that "
            f"{target} is written in is without one; train with model.mlp=swiglu"
        )
    if model.qkv_bias:
        return "qkv_bias"
    return "qk_norm" if model.qk_norm else "sub_norm" if model.sub_norm else "llama"


def pieces_of(file: PackedFile, layout: Layout) -> Iterator[Piece]:
    """Hand out all tensors of an export, one layer's at a time."""
    model = file.manifest.model
    yield Piece(layout.embedding, rows_of(file, "embedding"))
    for index in range(model.num_layers):
        prefix = layout.layer.format(index)
        for word, content in _layer(file, index, layout).items():
            yield Piece(f"{prefix}{layout.pieces[word]}.weight", content)
        for word, bias in _biases(file, index).items():
            yield Piece(f"{prefix}{layout.pieces[word]}.bias", bias)
    yield Piece(layout.norm, _norm(file, "norm"))
    if not model.tied_head:
        yield Piece(layout.head, rows_of(file, "head"))


def _layer(file: PackedFile, index: int, layout: Layout) -> dict[str, Matrix | Tensor]:
    model, at = file.manifest.model, f"blocks.{index}"
    qkv, up = projection(file, f"{at}.attention.qkv"), projection(file, f"{at}.mlp.up")
    query, key, value = torch.arange(sum(_qkv_widths(model))).split(_qkv_widths(model))
    if layout.rope == "pairs":
        query = query[pairs_from_halves(model.num_heads, model.head_width)]
        key = key[pairs_from_halves(model.num_kv_heads, model.head_width)]
    gate, value_of_gate = torch.arange(2 * model.mlp_width).chunk(2)
    pieces: dict[str, Matrix | Tensor] = {
        "attention_norm": _norm(file, f"{at}.attention_norm"),
        "query": qkv.rows(query),
        "key": qkv.rows(key),
        "value": qkv.rows(value),
        "out": projection(file, f"{at}.attention.out"),
        "mlp_norm": _norm(file, f"{at}.mlp_norm"),
        "gate": up.rows(gate),
        "up": up.rows(value_of_gate),
        "down": projection(file, f"{at}.mlp.down"),
    }
    if model.qk_norm:
        pieces |= {name: _norm(file, f"{at}.attention.{name}") for name in ("q_norm", "k_norm")}
    if model.sub_norm:
        pieces["attention_sub_norm"] = _norm(file, f"{at}.attention.sub_norm")
        pieces["mlp_sub_norm"] = _norm(file, f"{at}.mlp.sub_norm")
    return pieces


def _biases(file: PackedFile, index: int) -> dict[str, Tensor]:
    model = file.manifest.model
    if not model.qkv_bias:
        return {}
    whole = file.tensors[f"blocks.{index}.attention.qkv_bias.weight"]
    parts = whole.split(_qkv_widths(model))
    return dict(zip(("query", "key", "value"), parts, strict=True))


def _qkv_widths(model: ModelConfig) -> list[int]:
    kv_width = model.num_kv_heads * model.head_width
    return [model.width, kv_width, kv_width]


def _norm(file: PackedFile, name: str) -> Tensor:
    return file.tensors[f"{name}.weight"]
