"""Files as other projects write them, with random weights."""

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from tests.conftest import TOY
from tests.imports.plain_llama import LAYER, NORMS, random_weights
from torch import Tensor

from trilith.model import ModelConfig

VOCAB_SIZE = 300
SHAPE = replace(TOY, name="small", vocab_size=VOCAB_SIZE, num_layers=3, context=64, tied_head=False)
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.\n"
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high for her.\n"
)


_LIKE_LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
}


def sentencepiece_model(vocab_size: int = VOCAB_SIZE, **settings: Any) -> bytes:
    """Train a tokenizer as Llama's: BPE, byte fallback, a space before the text."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 4),
        model_writer=written,
        vocab_size=vocab_size,
        minloglevel=2,
        **_LIKE_LLAMA | settings,
    )
    return written.getvalue()


def huggingface_config(shape: ModelConfig, **changes: Any) -> dict[str, Any]:
    """Return a config.json as transformers 4 writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": shape.tied_head,
        "vocab_size": shape.vocab_size,
        "torch_dtype": "float32",
    } | changes


def huggingface_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights the names of a Hugging Face Llama."""
    parts = {**dict.fromkeys(LAYER[:4], "self_attn."), **dict.fromkeys(LAYER[4:], "mlp.")}
    named = {}
    for name, tensor in weights.items():
        layer, _, part = name.rpartition(".")
        if layer:
            named[f"model.layers.{layer}.{parts.get(part, '')}{part}.weight"] = tensor
        else:
            named[f"{'' if part == 'lm_head' else 'model.'}{part}.weight"] = tensor
    return named


def write_huggingface(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    shape: ModelConfig = SHAPE,
    num_shards: int = 1,
    **changes: Any,
) -> Path:
    """Write a Hugging Face folder with a tokenizer; `changes` go into config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(huggingface_config(shape, **changes)))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(shape.vocab_size))
    tensors = {name: t.contiguous() for name, t in huggingface_tensors(weights).items()}
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::num_shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def llama2c_bytes(
    weights: dict[str, Tensor], *, shape: ModelConfig = SHAPE, version: int = 0
) -> bytes:
    """Return a float32 file of llama2.c: legacy, or version 1 with a header of 256 bytes."""
    names = dict(zip(("wq", "wk", "wv", "wo", "w1", "w3", "w2"), LAYER, strict=True))
    sizes = [shape.width, shape.mlp_width, shape.num_layers, shape.num_heads, shape.num_kv_heads]

    def stack(*names: str) -> list[Tensor]:
        return [weights[f"{n}.{name}"] for name in names for n in range(shape.num_layers)]

    attention = stack(*(names[n] for n in ("wq", "wk", "wv", "wo")))
    mlp = stack(*(names[n] for n in ("w1", "w2", "w3")))
    head = [] if shape.tied_head else [weights["lm_head"]]
    if version == 0:
        vocab_size = shape.vocab_size if shape.tied_head else -shape.vocab_size
        header = struct.pack("<7i", *sizes, vocab_size, shape.context)
        tables = [torch.zeros(shape.context, shape.head_width // 2)] * 2
        parts = [weights["embed_tokens"], *stack(NORMS[0]), *attention]
        parts += [*stack(NORMS[1]), *mlp, weights["norm"], *tables, *head]
    else:
        header = b"24ka" + struct.pack("<8i", version, *sizes, shape.vocab_size, shape.context)
        header = (header + bytes([shape.tied_head])).ljust(256, b"\0")
        parts = [*stack(*NORMS), weights["norm"], weights["embed_tokens"], *attention, *mlp, *head]
    return header + b"".join(part.numpy().astype("<f4").tobytes() for part in parts)


def tokenizer_bin(model: bytes) -> bytes:
    """Return a SentencePiece model as llama2.c's exporter writes it."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    entries = []
    for token in range(pieces.get_piece_size()):
        text = {1: "\n<s>\n", 2: "\n</s>\n"}.get(token, pieces.id_to_piece(token))
        content = text.replace("\u2581", " ").encode()
        entries.append(struct.pack("<fi", pieces.get_score(token), len(content)) + content)
    longest = max(len(entry) - 8 for entry in entries)
    return struct.pack("<i", longest) + b"".join(entries)


def write_llama2c(folder: Path, weights: dict[str, Tensor], *, shape: ModelConfig = SHAPE) -> Path:
    """Write a legacy llama2.c file with its tokenizer beside it; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin(sentencepiece_model(shape.vocab_size)))
    (folder / "small.bin").write_bytes(llama2c_bytes(weights, shape=shape))
    return folder / "small.bin"


def drawn(shape: ModelConfig = SHAPE, **changes: Any) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return a shape with changes, and weights for it; always the same ones."""
    torch.manual_seed(0)
    changed = replace(shape, **changes)
    return changed, random_weights(changed)
