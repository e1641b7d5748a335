"""Llama as its papers say, one projection at a time: the oracle for imported weights.

Weights go by Hugging Face's names without prefixes. Written from the formulas, with complex
numbers for RoPE, so that it shares no code and no layout with the model it checks.
"""

from typing import Literal

import torch
from torch import Tensor

from trilith.model import ModelConfig

Rope = Literal["halves", "pairs"]
LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def random_weights(shape: ModelConfig) -> dict[str, Tensor]:
    """Draw weights of a shape, large enough for every part to matter."""
    width, kv_width = shape.width, shape.num_kv_heads * shape.head_width
    sizes = {
        "q_proj": (width, width),
        "k_proj": (kv_width, width),
        "v_proj": (kv_width, width),
        "o_proj": (width, width),
        "gate_proj": (shape.mlp_width, width),
        "up_proj": (shape.mlp_width, width),
        "down_proj": (width, shape.mlp_width),
    }
    weights = {"embed_tokens": torch.randn(shape.vocab_size, width) * 0.3}
    if not shape.tied_head:
        weights["lm_head"] = torch.randn(shape.vocab_size, width) * 0.3
    weights["norm"] = 1 + 0.3 * torch.randn(width)
    for layer in range(shape.num_layers):
        for name in LAYER:
            weights[f"{layer}.{name}"] = torch.randn(sizes[name]) * 0.3
        for name in NORMS:
            weights[f"{layer}.{name}"] = 1 + 0.3 * torch.randn(width)
    return weights


def logits(weights: dict[str, Tensor], shape: ModelConfig, ids: list[int], rope: Rope) -> Tensor:
    """Return the logits [T, V] of a sequence, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = w["embed_tokens"][ids]
    for layer in range(shape.num_layers):
        at = {name: w[f"{layer}.{name}"] for name in (*LAYER, *NORMS)}
        x = x + attend(normalize(x, at["input_layernorm"], shape.norm_eps), at, shape, rope)
        h = normalize(x, at["post_attention_layernorm"], shape.norm_eps)
        gate = h @ at["gate_proj"].T
        x = x + (gate / (1 + torch.exp(-gate)) * (h @ at["up_proj"].T)) @ at["down_proj"].T
    head = w["embed_tokens"] if shape.tied_head else w["lm_head"]
    return normalize(x, w["norm"], shape.norm_eps) @ head.T


def normalize(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain


def attend(x: Tensor, at: dict[str, Tensor], shape: ModelConfig, rope: Rope) -> Tensor:
    heads = []
    size = shape.head_width
    for head in range(shape.num_heads):
        of_group = head * shape.num_kv_heads // shape.num_heads
        q = turn((x @ at["q_proj"].T)[:, head * size : (head + 1) * size], shape, rope)
        k = turn((x @ at["k_proj"].T)[:, of_group * size : (of_group + 1) * size], shape, rope)
        v = (x @ at["v_proj"].T)[:, of_group * size : (of_group + 1) * size]
        scores = q @ k.T / size**0.5
        future = torch.ones_like(scores).triu(1).bool()
        heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v)
    return torch.cat(heads, dim=-1) @ at["o_proj"].T


def turn(x: Tensor, shape: ModelConfig, rope: Rope) -> Tensor:
    """Rotate pairs of features by their position's angles, as complex numbers."""
    num_pairs = shape.head_width // 2
    speed = shape.rope_theta ** (-torch.arange(num_pairs).double() / num_pairs)
    angle = torch.outer(torch.arange(len(x)).double(), speed)
    first, second = (
        (x[:, :num_pairs], x[:, num_pairs:]) if rope == "halves" else (x[:, ::2], x[:, 1::2])
    )
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    if rope == "halves":
        return torch.cat([turned.real, turned.imag], dim=-1)
    return torch.stack([turned.real, turned.imag], dim=-1).flatten(1)
