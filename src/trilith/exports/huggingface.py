"""Hugging Face folders that transformers loads, offline and without code of ours.

Int8 activations stay int8, by `bitnet_layers`; models of float activations are plain floats.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from trilith.exports.bitnet_layers import (
    can_be_packed,
    packed_weight,
    quantization_config,
    write_scales,
)
from trilith.exports.huggingface_tokenizer import tokenizer_files
from trilith.exports.layout import Layout, kind_of, pieces_of
from trilith.exports.matrices import DenseMatrix, GridMatrix, Matrix
from trilith.exports.model_card import Figures, model_card
from trilith.exports.pieces_table import ExportedMarks, exported_marks
from trilith.files import replacing
from trilith.model import ModelConfig
from trilith.packed import PackedFile
from trilith.packed.read import naming
from trilith.tokens import Tokenizer

# The first is what is written unless another is asked for: it keeps every weight as it is.
HUGGINGFACE_TYPES = ("float32", "bfloat16", "float16")

_PIECES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attention_sub_norm": "self_attn.attn_sub_norm",
    "mlp_sub_norm": "mlp.ffn_sub_norm",
}
_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qkv_bias": ("Qwen2ForCausalLM", "qwen2"),
    "qk_norm": ("Qwen3ForCausalLM", "qwen3"),
    "sub_norm": ("BitNetForCausalLM", "bitnet"),
}
_ACTIVATIONS = {"swiglu": "silu", "gated_relu2": "relu2"}


def write_huggingface(
    file: PackedFile, folder: Path, *, weights: str, figures: Figures | None
) -> None:
    """Write a packed model as a folder for `AutoModelForCausalLM`, whole or not at all.

    Args:
        file: a model with a counterpart in transformers.
        folder: the folder to write; what is there is replaced.
        weights: one of HUGGINGFACE_TYPES; float32 keeps the packed file's weights exactly.
        figures: what was measured of the packed file, for the model card.

    Raises:
        ValueError: no architecture of transformers computes what this model does.
    """
    with naming(file.path):
        model = file.manifest.model
        kind = kind_of(model, target="transformers")
        architecture, model_type = _ARCHITECTURES[kind]
        tokenizer = Tokenizer.from_bytes(file.tokenizer_bytes)
        files = tokenizer_files(tokenizer, context=model.context)
        marks = exported_marks(tokenizer)
        written = _weights(file, _layout(architecture), dtype=getattr(torch, weights))
        config = _config(model, marks) | {
            "architectures": [architecture],
            "model_type": model_type,
            "dtype": weights,
            "torch_dtype": weights,
            **written.config,
        }
        with replacing(folder) as partial:
            partial.mkdir()
            save_file(written.tensors, partial / "model.safetensors", metadata={"format": "pt"})
            write_scales(written.scaled, partial)
            _write_json(partial / "config.json", config)
            _write_json(partial / "generation_config.json", _ids(marks))
            for name, content in files.items():
                (partial / name).write_bytes(content)
            (partial / "README.md").write_text(model_card(file, weights=weights, figures=figures))


def _layout(architecture: str) -> Layout:
    return Layout(
        architecture=architecture,
        rope="halves",
        embedding="model.embed_tokens.weight",
        norm="model.norm.weight",
        head="lm_head.weight",
        layer="model.layers.{}.",
        pieces=_PIECES,
    )


class _Weights(NamedTuple):
    """Tensors by name, the projections whose scales they do not say, and what config.json adds."""

    tensors: dict[str, Tensor]
    scaled: dict[str, GridMatrix]
    config: dict[str, Any]


def _weights(file: PackedFile, layout: Layout, *, dtype: torch.dtype) -> _Weights:
    has_int8 = file.manifest.activation_bits is not None
    # transformers' layers multiply by their scale after the bias: it must be 1 there.
    has_bias = file.manifest.model.qkv_bias
    biased = tuple(_PIECES[word] for word in ("query", "key", "value") if has_bias)
    tensors: dict[str, Tensor] = {}
    scaled: dict[str, GridMatrix] = {}
    dense = []
    for name, content in pieces_of(file, layout):
        module = name.removesuffix(".weight")
        if not (has_int8 and isinstance(content, GridMatrix)):
            tensors[name] = _floats(content, dtype, name=name)
        elif can_be_packed(content) and not module.endswith(biased):
            tensors[name] = packed_weight(content)
            tensors[f"{module}.weight_scale"] = content.scale.reshape(1).clone()
        else:
            tensors[name] = _floats(content, dtype, name=name)
            tensors[f"{module}.weight_scale"] = torch.ones(1)
            scaled[module] = content
        if isinstance(content, DenseMatrix):
            dense.append(module)
    config = {"quantization_config": quantization_config(float_projections=dense)}
    return _Weights(tensors, scaled, config if has_int8 else {})


def _floats(content: Matrix | Tensor, dtype: torch.dtype, *, name: str) -> Tensor:
    weight = content if isinstance(content, Tensor) else content.floats()
    # A copy: safetensors refuses tensors that share memory, such as slices of one.
    weight = weight.to(dtype, copy=True).contiguous()
    if not weight.isfinite().all():
        raise ValueError(f"holds {name} beyond {dtype}; export it with --type float32")
    return weight


def _config(model: ModelConfig, marks: ExportedMarks) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_width,
        "hidden_act": _ACTIVATIONS[model.mlp],
        "max_position_embeddings": model.context,
        # The first is where transformers 5 looks, the second where all before did.
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.norm_eps,
        "attention_bias": model.qkv_bias,
        "mlp_bias": False,
        "tie_word_embeddings": model.tied_head,
        **_ids(marks),
    }


def _ids(marks: ExportedMarks) -> dict[str, Any]:
    eos: Any = marks.stop_ids if len(marks.stop_ids) > 1 else marks.stop_ids[0]
    return {"bos_token_id": marks.bos_id, "eos_token_id": eos, "pad_token_id": marks.pad_id}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
