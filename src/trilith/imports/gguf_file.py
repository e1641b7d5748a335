"""GGUF files of the Llama family: floats, Q8_0, and ternary weights in TQ1_0 and TQ2_0.

Ternary ones stay ternary, with a scale for each 256 weights of a row. llama.cpp rounds their inputs
to int8 by 256 features, ours by token.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilith.imports.gguf_tokenizer import sentencepiece_of, stop_ids_of
from trilith.imports.layers import LayerWeights, fuse, halves_from_pairs
from trilith.imports.licence import licence_beside
from trilith.imports.source import (
    Source,
    State,
    fresh_provenance,
    plain_name,
    require_tokenizer_size,
)
from trilith.imports.tokenizer_file import read_tokenizer
from trilith.model import ModelConfig
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer

_ARCHITECTURES = ("llama", "qwen3", "bitnet")
_BLOCK = 256
_TERNARY_TYPES = {"TQ1_0", "TQ2_0"}
_FLOAT_TYPES = {"F32", "F16", "BF16", "Q8_0"}
_TERNARY = QuantConfig("ternary", "least_squares", "group", _BLOCK, 8)
_PROJECTIONS = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "out": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_NORMS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
# Norms that Llama has not, by our names.
_QK_NORMS = {"attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}
_SUB_NORMS = {"attention.sub_norm": "attn_sub_norm", "mlp.sub_norm": "ffn_sub_norm"}
# Keys that change what is computed, and that ours has no counterpart for.
_FOREIGN = ("rope.scaling.type", "expert_count", "attention.sliding_window", "logit_scale")


@dataclass(frozen=True)
class _Contents:
    """An opened file: its keys, and its tensors by name."""

    path: Path
    reader: Any
    tensors: dict[str, Any]

    def field(self, key: str, default: Any = None) -> Any:
        """Return the value of a key."""
        found = self.reader.get_field(key)
        return default if found is None else found.contents()

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """Return the value of a key of the file's architecture."""
        value = self.field(f"{self.field('general.architecture')}.{key}", default)
        if value is None:
            raise ValueError(f"lacks the key {key} of its architecture; get another copy")
        return value

    def weight(self, name: str) -> Tensor:
        """Return a tensor in float32."""
        import gguf

        tensor = self.tensors[f"{name}.weight"]
        floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return torch.from_numpy(floats).view(*reversed(tensor.shape.tolist()))


def open_gguf(path: Path, *, tokenizer: Path | None) -> Source:
    """Open a GGUF file of one of llama.cpp's architectures that is ours too.

    Args:
        path: the file.
        tokenizer: a SentencePiece model, or a tokenizer.json with the files beside it; None takes
            the one in the file.

    Raises:
        ModuleNotFoundError: the extra `export` is not installed.
        ValueError: an architecture, type or tokenizer that ours cannot hold, or a damaged file.
    """
    contents = _open(path)
    try:
        model = _shape(contents)
        quant = _quant(contents, model)
        own = b"" if tokenizer else sentencepiece_of(contents.field)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if tokenizer:
        found = read_tokenizer(tokenizer, rows=model.vocab_size, model=path)
    else:
        found = Tokenizer(own, origin=f"the tokenizer of {path}")
        require_tokenizer_size(found, rows=model.vocab_size, origin=path)
    found = found.stopping_at(stop_ids_of(contents.field), origin=str(path))
    return Source(
        kind="GGUF",
        path=path,
        model=model,
        quant=quant,
        stored=" and ".join(sorted({t.tensor_type.name for t in contents.tensors.values()})),
        weight_files=(path,),
        tokenizer=found.model_bytes,
        tokenizer_sha256=found.sha256,
        provenance=fresh_provenance(model.name),
        licence=licence_beside(path),
        read=partial(_read, contents, model, quant),
    )


def _open(path: Path) -> _Contents:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}, which reads {path}; pip install -c constraints.txt -e '.[export]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{path} is no GGUF file, or is cut or damaged ({error}); copy it again"
        ) from None
    return _Contents(path, reader, {tensor.name: tensor for tensor in reader.tensors})


def _shape(contents: _Contents) -> ModelConfig:
    architecture = contents.field("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"has architecture {architecture}; these are known: {', '.join(_ARCHITECTURES)}"
        )
    for key in _FOREIGN:
        value = contents.of_architecture(key, 0)
        if value not in (0, "none"):
            raise ValueError(f"has {key}={value}, which our model cannot hold exactly")
    get = contents.of_architecture
    num_heads, width = get("attention.head_count"), get("embedding_length")
    if get("attention.key_length", width // num_heads) != width // num_heads:
        raise ValueError("has heads that do not share the width, as ours do")
    return ModelConfig(
        name=plain_name(contents.path.stem),
        vocab_size=int(contents.tensors["token_embd.weight"].shape[1]),
        width=width,
        num_layers=get("block_count"),
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv", num_heads),
        mlp="swiglu",
        mlp_width=get("feed_forward_length"),
        context=get("context_length"),
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        # float32 in the file: the decimal number that it was.
        norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
        qk_norm=architecture == "qwen3",
        sub_norm=architecture == "bitnet",
        tied_head="output.weight" not in contents.tensors,
    )


def _quant(contents: _Contents, model: ModelConfig) -> QuantConfig | None:
    """Tell ternary from dense; refuse tensors that are missing, unknown or of another type."""
    layers = [f"blk.{index}." for index in range(model.num_layers)]
    projections = {f"{at}{name}.weight" for at in layers for name in _PROJECTIONS.values()}
    norms = {*_NORMS.values(), *_more_norms(model).values()}
    rest = {f"{at}{name}.weight" for at in layers for name in norms}
    rest |= {"token_embd.weight", "output_norm.weight"}
    rest |= set() if model.tied_head else {"output.weight"}
    missing = sorted((projections | rest) - set(contents.tensors))
    unknown = sorted(set(contents.tensors) - projections - rest)
    if missing or unknown:
        raise ValueError(
            f"lacks the tensors {missing[:3]} and holds the unknown tensors {unknown[:3]}"
        )
    types = {name: tensor.tensor_type.name for name, tensor in contents.tensors.items()}
    is_ternary = {types[name] in _TERNARY_TYPES for name in projections}
    others = {types[name] for name in (rest if True in is_ternary else types)} - _FLOAT_TYPES
    if others or len(is_ternary) > 1:
        found = ", ".join(sorted(set(types.values())))
        raise ValueError(
            f"holds weights as {found}; read are {', '.join(sorted(_FLOAT_TYPES))}, and "
            f"{' or '.join(sorted(_TERNARY_TYPES))} for all projections"
        )
    return _TERNARY if is_ternary == {True} else None


def _more_norms(model: ModelConfig) -> dict[str, str]:
    return (_QK_NORMS if model.qk_norm else {}) | (_SUB_NORMS if model.sub_norm else {})


def _read(contents: _Contents, model: ModelConfig, quant: QuantConfig | None) -> State:
    state = {
        "embedding.weight": contents.weight("token_embd"),
        "norm.weight": contents.weight("output_norm"),
    }
    if not model.tied_head:
        state["head.weight"] = contents.weight("output")
    for index in range(model.num_layers):
        at = f"blk.{index}."
        weights = {ours: contents.weight(at + name) for ours, name in _PROJECTIONS.items()}
        # llama.cpp's llama alone turns neighbours.
        if not (model.qk_norm or model.sub_norm):
            weights["query"] = halves_from_pairs(weights["query"], model.num_heads)
            weights["key"] = halves_from_pairs(weights["key"], model.num_kv_heads)
        norms = {ours: contents.weight(at + name) for ours, name in _NORMS.items()}
        layer = fuse(LayerWeights(**weights, **norms), index)
        if quant is not None:
            layer |= {
                name.replace(".weight", ".scale"): _scales(weight)
                for name, weight in layer.items()
                if weight.dim() == 2
            }
        state |= layer
        for ours, name in _more_norms(model).items():
            state[f"blocks.{index}.{ours}.weight"] = contents.weight(at + name)
    return state


def _scales(weight: Tensor) -> Tensor:
    """Return the scale of each block [O, I / 256]: of one that is zero, any would do."""
    scale = weight.view(len(weight), -1, _BLOCK).abs().amax(dim=2)
    return torch.where(scale == 0, 1.0, scale)
