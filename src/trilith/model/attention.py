"""Causal self-attention with rotary positions, grouped queries and an optional cache.

Axes: B batch, T new tokens, S all tokens seen, H heads, K key/value heads, C head width, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from trilith.model.bias import Bias
from trilith.model.cache import KVCache
from trilith.model.config import ModelConfig
from trilith.model.norm import RMSNorm
from trilith.model.static_cache import StaticCache

LinearFactory = Callable[[int, int], nn.Module]


class Attention(nn.Module):
    """Fused query/key/value projection, RoPE, scaled dot product, output projection."""

    def __init__(self, config: ModelConfig, *, layer: int, linear: LinearFactory) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_width = config.head_width
        num_projected = (config.num_heads + 2 * config.num_kv_heads) * config.head_width
        self.qkv = linear(config.width, num_projected)
        self.qkv_bias = Bias(num_projected) if config.qkv_bias else nn.Identity()
        self.out = linear(config.width, config.width)
        norm_eps = config.norm_eps
        self.q_norm = RMSNorm(config.head_width, norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_width, norm_eps) if config.qk_norm else nn.Identity()
        self.sub_norm = RMSNorm(config.width, norm_eps) if config.sub_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | StaticCache | None,
        mask_BTT: Tensor | None = None,
    ) -> Tensor:
        """Attend from each token to itself and all before it: [B, T, D] -> [B, T, D].

        A mask says instead which tokens (last axis) each token sees; it goes without a cache.
        """
        num_batch, num_new, _ = x_BTD.shape
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        projected = self.qkv_bias(self.qkv(x_BTD))
        projected = projected.view(num_batch, num_new, -1, self.head_width).transpose(1, 2)
        q_BHTC, k_BKTC, v_BKTC = projected.split(heads, dim=1)
        q_BHTC = rotate(self.q_norm(q_BHTC), *rope)
        k_BKTC = rotate(self.k_norm(k_BKTC), *rope)
        if isinstance(cache, StaticCache):
            mixed_BHTC = cache.attend(self.layer, q_BHTC, k_BKTC, v_BKTC)
        else:
            if cache is not None:
                k_BKTC, v_BKTC = cache.extend(self.layer, k_BKTC, v_BKTC)
            mixed_BHTC = causal_attention(q_BHTC, k_BKTC, v_BKTC, mask_BTT)
        mixed_BTD = mixed_BHTC.transpose(1, 2).reshape(num_batch, num_new, -1)
        return self.out(self.sub_norm(mixed_BTD))


def causal_attention(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_BTS: Tensor | None = None
) -> Tensor:
    """Softmax attention of the last T of S positions, each to itself and those before it.

    Args:
        q_BHTC: queries.
        k_BKSC: keys.
        v_BKSC: values.
        mask_BTS: bool, True where a token sees another; None for all up to itself.

    Returns:
        [B, H, T, C].
    """
    num_new, num_seen = q_BHTC.shape[2], k_BKSC.shape[2]
    repeats = q_BHTC.shape[1] // k_BKSC.shape[1]
    if repeats > 1:
        k_BKSC = k_BKSC.repeat_interleave(repeats, dim=1)
        v_BKSC = v_BKSC.repeat_interleave(repeats, dim=1)
    if mask_BTS is not None:
        mask_B1TS = mask_BTS[:, None]
        return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=mask_B1TS)
    if num_new == num_seen:
        return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, is_causal=True)
    if num_new == 1:
        return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC)
    position = torch.arange(num_seen, device=q_BHTC.device)
    mask_TS = position <= position[num_seen - num_new :, None]
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=mask_TS)


class Isolation(NamedTuple):
    """What keeps the segments of a row apart: own positions, and a mask of who sees whom."""

    positions_BT: Tensor  # int64, from 0 in every segment
    mask_BTT: Tensor  # bool, True where a token (middle axis) sees another


def isolate(segments_BT: Tensor) -> Isolation:
    """Make every run of equal numbers in a row a sequence of its own.

    Args:
        segments_BT: whole numbers; those of neighbouring segments differ.
    """
    index_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    is_first_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    first_BT = torch.where(is_first_BT, index_T, 0).cummax(dim=1).values
    is_causal_TT = index_T <= index_T[:, None]
    mask_BTT = is_causal_TT & (first_BT[:, None, :] == first_BT[:, :, None])
    return Isolation(index_T - first_BT, mask_BTT)


def rope_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al., arXiv 2104.09864), halves convention.

    Args:
        positions: [..., T].
        head_width: C, even.
        theta: base of the angles.

    Returns:
        Two float32 tensors [..., T, C].
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions.float()[..., None] * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        return _turn(x_BHTC, cos_TC, sin_TC)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos_TC, sin_TC = ctx.saved_tensors  # type: ignore[attr-defined]
        return _turn(grad, cos_TC, -sin_TC), None, None


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) of features by its position's angle; the gradient turns back.

    Tables are [T, C], or [B, 1, T, C] where rows have positions of their own.
    """
    return _Rotate.apply(x_BHTC, cos_TC, sin_TC)


def _turn(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    half = x_BHTC.shape[-1] // 2
    out = x_BHTC * cos_TC
    out[..., :half].addcmul_(x_BHTC[..., half:], sin_TC[..., :half], value=-1)
    out[..., half:].addcmul_(x_BHTC[..., :half], sin_TC[..., half:])
    return out.to(x_BHTC.dtype)
