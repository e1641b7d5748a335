"""Hugging Face folders of the Llama family: config.json, safetensors, a tokenizer.

Weights are floats, or of `bitnet_layers`, which makes them ternary or of a grid of ours.
The reference for which of them our model can hold exactly; all others are refused.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilith.files import read_json
from trilith.imports.bitnet_layers import (
    PACKED,
    BitNetLayers,
    packed_shape,
    read_bitnet_layers,
    read_projection,
    reads_quantization,
)
from trilith.imports.layers import LayerWeights, fuse
from trilith.imports.licence import licence_beside
from trilith.imports.shards import Shards, open_shards, read_tensor
from trilith.imports.source import Source, State, fresh_provenance, plain_name
from trilith.imports.tokenizer_file import find_tokenizer_file, read_tokenizer
from trilith.model import ModelConfig
from trilith.model.config import MlpKind

# What each architecture does unless its config.json says otherwise, beside Llama's own ways.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 4096, "num_key_value_heads": 8},
    "Qwen2ForCausalLM": {"num_key_value_heads": 32, "use_sliding_window": False},
    "Qwen3ForCausalLM": {"head_dim": 128, "num_key_value_heads": 32, "use_sliding_window": False},
    "BitNetForCausalLM": {
        "hidden_act": "relu2",
        "num_key_value_heads": 5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
    },
}
# Qwen 2 has them without a word in its config.json; others say `attention_bias`.
_WITH_QKV_BIAS = ("Qwen2ForCausalLM",)
_WITH_QK_NORM = ("Qwen3ForCausalLM",)
_WITH_SUB_NORM = ("BitNetForCausalLM",)
_MLPS: dict[str, MlpKind] = {"silu": "swiglu", "relu2": "gated_relu2"}
# Keys that must have one of these values, and why ours cannot do otherwise.
_NEEDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "mlp_bias": ((None, False), "our MLPs have no biases"),
    "hidden_act": (tuple(_MLPS), "our gated MLPs have silu (SwiGLU) or relu2"),
    "sliding_window": ((None,), "our attention sees the whole context"),
    "quantization_config": ((None,), "quantized weights are not read; give the float model"),
}
_OUT_BIAS = "self_attn.o_proj.bias"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_STORED = _DTYPES | {PACKED: "four codes a byte"}
# Projections that are one of ours, in this order, by the name of ours.
_FUSED = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
_BIASED = _FUSED["attention.qkv"]
_GET_ANOTHER = "get another copy of the folder"


def open_huggingface(folder: Path, *, tokenizer: Path | None) -> Source:
    """Open a folder with config.json and model.safetensors or its shards.

    Args:
        folder: as `save_pretrained` writes it.
        tokenizer: a SentencePiece model or tokenizer.json; None takes the folder's, the first of
            both where it has both.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: an architecture, option, dtype or tokenizer that ours cannot hold.
    """
    config = read_json(folder / "config.json", made_by="its own project")
    model = shape_of(config, name=folder.resolve().name, origin=folder / "config.json")
    shards = open_shards(folder)
    is_bitnet = config.get("quantization_config") is not None
    shapes = _tensor_shapes(model, is_bitnet=is_bitnet)
    _check_tensors(shards, shapes)
    layers = read_bitnet_layers(shards, _groups(model)) if is_bitnet else None
    found = read_tokenizer(
        tokenizer or find_tokenizer_file(folder), rows=model.vocab_size, model=folder
    )
    return Source(
        kind="Hugging Face",
        path=folder,
        model=model,
        quant=layers.quant if layers else None,
        stored=" and ".join(sorted({_STORED[shards.dtypes[name]] for name in shapes})),
        weight_files=shards.files,
        tokenizer=found.model_bytes,
        tokenizer_sha256=found.sha256,
        provenance=fresh_provenance(model.name),
        licence=licence_beside(folder),
        read=partial(_read, shards, model, layers),
        read_parts=partial(_parts, shards, model, layers),
    )


def shape_of(config: Any, *, name: str, origin: Path) -> ModelConfig:
    """Turn a config.json into our shape.

    Raises:
        ValueError: it is no config.json of a model, or of one that ours cannot hold exactly.
    """
    if not isinstance(config, dict) or not config.get("architectures"):
        raise ValueError(f"{origin} names no `architectures`; give the folder of a language model")
    (architecture, *_) = config["architectures"]
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{origin}: architecture {architecture} is not known; "
            f"these are: {', '.join(_ARCHITECTURES)}"
        )
    config = _ARCHITECTURES[architecture] | config
    _check_options(config, origin=origin, architecture=architecture)
    try:
        shape = _shape(config, name, architecture)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{origin} lacks or garbles {error}; {_GET_ANOTHER}") from None
    head_width = config.get("head_dim") or shape.head_width
    if head_width != shape.head_width:
        raise ValueError(
            f"{origin}: head_dim={head_width}, and our heads share the width: hidden_size / "
            f"num_attention_heads = {shape.head_width}; this model cannot be imported"
        )
    return shape


def _check_options(config: dict[str, Any], *, origin: Path, architecture: str) -> None:
    for key, (allowed, why) in _NEEDED.items():
        value = config.get(key, "silu" if key == "hidden_act" else None)
        if key == "sliding_window" and not config.get("use_sliding_window", True):
            # Qwen's config.json names a window that is not used.
            continue
        if key == "quantization_config" and reads_quantization(value):
            continue
        if value not in allowed:
            raise ValueError(
                f"{origin}: {key}={value!r} of {architecture} cannot be held exactly: {why}"
            )
    rope = _rope(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"{origin}: RoPE scaling {kind!r} cannot be held exactly: ours turns by plain "
            "positions; import the model from before its context was stretched"
        )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """What is said of RoPE, where transformers 5 says it or where all before did."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _shape(config: dict[str, Any], name: str, architecture: str) -> ModelConfig:
    theta = _rope(config).get("rope_theta", config.get("rope_theta", 10_000.0))
    num_heads = config["num_attention_heads"]
    return ModelConfig(
        name=plain_name(name),
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        mlp=_MLPS[config.get("hidden_act", "silu")],
        mlp_width=config["intermediate_size"],
        context=config["max_position_embeddings"],
        rope_theta=float(theta),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        qk_norm=architecture in _WITH_QK_NORM,
        sub_norm=architecture in _WITH_SUB_NORM,
        tied_head=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=architecture in _WITH_QKV_BIAS or bool(config.get("attention_bias", False)),
    )


def _groups(model: ModelConfig) -> list[list[str]]:
    """Names of all projections, those together that are one of ours."""
    return [
        [f"model.layers.{index}.{name}" for name in names]
        for index in range(model.num_layers)
        for names in _FUSED.values()
    ]


def _tensor_shapes(model: ModelConfig, *, is_bitnet: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, with its shape."""
    width, kv_width = model.width, model.num_kv_heads * model.head_width
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (model.mlp_width, width),
        "mlp.up_proj": (model.mlp_width, width),
        "mlp.down_proj": (width, model.mlp_width),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        **{name: (size,) for name, (_, size) in _more_norms(model).items()},
    }
    named = {f"{name}.weight": shape for name, shape in layer.items()}
    if model.qkv_bias:
        named |= {f"{name}.bias": layer[name][:1] for name in _BIASED}
    if is_bitnet:
        named |= {f"{name}.weight_scale": (1,) for names in _FUSED.values() for name in names}
    shapes = {
        f"model.layers.{index}.{name}": shape
        for index in range(model.num_layers)
        for name, shape in named.items()
    }
    shapes |= {"model.embed_tokens.weight": (model.vocab_size, width)}
    shapes |= {"model.norm.weight": (width,)}
    return shapes if model.tied_head else shapes | {"lm_head.weight": (model.vocab_size, width)}


def _more_norms(model: ModelConfig) -> dict[str, tuple[str, int]]:
    """Norms of a layer that Llama has not: our name and the width of each."""
    norms: dict[str, tuple[str, int]] = {}
    if model.qk_norm:
        norms["self_attn.q_norm"] = ("attention.q_norm", model.head_width)
        norms["self_attn.k_norm"] = ("attention.k_norm", model.head_width)
    if model.sub_norm:
        norms["self_attn.attn_sub_norm"] = ("attention.sub_norm", model.width)
        norms["mlp.ffn_sub_norm"] = ("mlp.sub_norm", model.mlp_width)
    return norms


def _check_tensors(shards: Shards, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse missing, unknown and misshapen tensors before one is read."""
    has_biases = any(name.endswith(".bias") for name in shapes)
    missing = sorted(set(shapes) - set(shards.shapes))
    # Old checkpoints store the angles of RoPE; a tied head may be stored, and says nothing new.
    unknown = sorted(
        name
        for name in set(shards.shapes) - set(shapes)
        if not name.endswith("rotary_emb.inv_freq")
        and name != "lm_head.weight"
        and not (has_biases and name.endswith(_OUT_BIAS))
    )
    if missing or unknown:
        raise ValueError(
            f"{shards.folder} lacks the tensors {_few(missing)} and holds the unknown tensors "
            f"{_few(unknown)}; its config.json is of another model, or files are missing"
        )
    for name, shape in shapes.items():
        if not _is_stored_well(shards, name, shape, may_be_packed=f"{name}_scale" in shapes):
            raise ValueError(
                f"{shards.folder} holds {name} as {shards.dtypes[name]} "
                f"{list(shards.shapes[name])}, expected {', '.join(_DTYPES)} {list(shape)}"
            )
    for name in shards.shapes:
        # Llama's `attention_bias` makes this one too; models made of Qwen 2 keep zeros in it.
        if name.endswith(_OUT_BIAS) and read_tensor(shards, name).any():
            raise ValueError(
                f"{shards.folder} holds {name}, and our attention has no bias on its output; this "
                "model cannot be held exactly"
            )


def _is_stored_well(
    shards: Shards, name: str, shape: tuple[int, ...], *, may_be_packed: bool
) -> bool:
    if may_be_packed and shards.dtypes[name] == PACKED:
        return shards.shapes[name] == packed_shape(shape)
    return shards.shapes[name] == shape and shards.dtypes[name] in _DTYPES


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _read(shards: Shards, model: ModelConfig, layers: BitNetLayers | None) -> State:
    return {name: tensor for part in _parts(shards, model, layers) for name, tensor in part.items()}


def _parts(shards: Shards, model: ModelConfig, layers: BitNetLayers | None) -> Iterator[State]:
    state = {
        "embedding.weight": read_tensor(shards, "model.embed_tokens.weight"),
        "norm.weight": read_tensor(shards, "model.norm.weight"),
    }
    if not model.tied_head:
        state["head.weight"] = read_tensor(shards, "lm_head.weight")
    elif "lm_head.weight" in shards.shapes and not read_tensor(shards, "lm_head.weight").equal(
        state["embedding.weight"]
    ):
        raise ValueError(
            f"{shards.folder} ties the head to the embedding and holds another lm_head.weight; "
            f"{_GET_ANOTHER}, or mend tie_word_embeddings in its config.json"
        )
    yield state
    for index in range(model.num_layers):
        yield _block(shards, model, layers, index)


def _block(shards: Shards, model: ModelConfig, layers: BitNetLayers | None, index: int) -> State:
    at = f"model.layers.{index}"

    def tensor(name: str) -> Tensor:
        return read_tensor(shards, f"{at}.{name}.weight")

    def projection(name: str) -> Tensor:
        return read_projection(shards, f"{at}.{name}") if layers else tensor(name)

    layer = LayerWeights(
        query=projection("self_attn.q_proj"),
        key=projection("self_attn.k_proj"),
        value=projection("self_attn.v_proj"),
        out=projection("self_attn.o_proj"),
        gate=projection("mlp.gate_proj"),
        up=projection("mlp.up_proj"),
        down=projection("mlp.down_proj"),
        attention_norm=tensor("input_layernorm"),
        mlp_norm=tensor("post_attention_layernorm"),
    )
    state = fuse(layer, index)
    if layers:
        for ours, names in _FUSED.items():
            scale = layers.fused_scale([f"{at}.{name}" for name in names])
            state[f"blocks.{index}.{ours}.scale"] = scale
    if model.qkv_bias:
        biases = [_bias(shards, f"{at}.{name}", layers) for name in _BIASED]
        state[f"blocks.{index}.attention.qkv_bias.weight"] = torch.cat(biases)
    for name, (ours, _) in _more_norms(model).items():
        state[f"blocks.{index}.{ours}.weight"] = tensor(name)
    return state


def _bias(shards: Shards, name: str, layers: BitNetLayers | None) -> Tensor:
    bias = read_tensor(shards, f"{name}.bias")
    # These layers add it before they multiply by their scale.
    return bias * read_tensor(shards, f"{name}.weight_scale") if layers else bias
