"""Attention of new tokens to themselves and to a cache, part by part.

Each part of the keys gives an output and the logarithm of its share; the parts are then added up
(FlashAttention, arXiv 2205.14135). So no scores of all tokens with all are ever held, and what a
cache has quantized becomes floats for some hundred tokens at a time.
Axes: B batch, H heads, K key/value heads, T new tokens, S tokens of a part, C head width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.model.cache import KVCache, Past
from trilith.model.rope import rope_tables, rotate


class Part(NamedTuple):
    """Attention to some of the keys: the output, and the logarithm of the sum of exponentials."""

    out_BHTC: Tensor
    lse_BHT: Tensor


def attend_cached(
    q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, *, cache: KVCache, layer: int
) -> Tensor:
    """Attend from new tokens to themselves, as they are, and to those before, as `cache` has them.

    Queries and keys are rotated. The new keys and values are stored afterwards.

    Returns:
        [B, H, T, C].
    """
    num_new = q_BHTC.shape[2]
    repeats = q_BHTC.shape[1] // k_BKTC.shape[1]
    own_k, own_v = k_BKTC, v_BKTC
    if repeats > 1:
        own_k, own_v = (x.repeat_interleave(repeats, dim=1) for x in (k_BKTC, v_BKTC))
    if not cache.length:
        mixed = F.scaled_dot_product_attention(q_BHTC, own_k, own_v, is_causal=True)
    else:
        part = attend_part(q_BHTC, own_k, own_v, mask="causal" if num_new > 1 else None)
        del own_k, own_v
        for past in cache.past(layer):
            part = _add(part, _attend_past(q_BHTC, past, cache=cache))
        mixed = part.out_BHTC
    cache.write(layer, k_BKTC, v_BKTC)
    return mixed


def attend_part(
    q_BHTC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, *, mask: Tensor | str | None
) -> Part:
    """Attend to some keys.

    Args:
        q_BHTC: queries.
        k_BHSC: keys, as many heads.
        v_BHSC: values.
        mask: bool [T, S], True where a token is seen; `causal` where T = S tokens see those up to
            themselves; None for all.
    """
    if not q_BHTC.is_cpu:
        return attend_plainly(q_BHTC, k_BHSC, v_BHSC, mask=mask)
    added = None
    if isinstance(mask, Tensor):
        added = torch.zeros(mask.shape, dtype=q_BHTC.dtype).masked_fill_(~mask, -torch.inf)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTC, k_BHSC, v_BHSC, 0.0, mask == "causal" if added is None else False, attn_mask=added
    )
    if isinstance(mask, Tensor):
        # The kernel gives 0 where nothing is seen.
        lse = lse.masked_fill(~mask.any(-1), -torch.inf)
    return Part(out, lse)


def attend_plainly(
    q_BHTC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, *, mask: Tensor | str | None
) -> Part:
    """The reference of `attend_part`, for every device."""
    scores_BHTS = q_BHTC @ k_BHSC.transpose(-1, -2) / math.sqrt(q_BHTC.shape[-1])
    if isinstance(mask, str):
        mask = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=q_BHTC.device).tril()
    if mask is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask, -torch.inf)
    shares_BHTS = scores_BHTS.softmax(-1).nan_to_num()
    return Part(shares_BHTS @ v_BHSC, scores_BHTS.logsumexp(-1))


def _add(one: Part, other: Part) -> Part:
    """Put two parts together, each by its share; both are used up."""
    lse_BHT = torch.logaddexp(one.lse_BHT, other.lse_BHT)
    one.out_BHTC.mul_((one.lse_BHT - lse_BHT).exp_()[..., None])
    other.out_BHTC.mul_((other.lse_BHT - lse_BHT).exp_()[..., None])
    return Part(one.out_BHTC.add_(other.out_BHTC), lse_BHT)


def _attend_past(q_BHTC: Tensor, past: Past, *, cache: KVCache) -> Part:
    """Query heads that share keys are laid one behind the other, so that no key is repeated."""
    num_batch, num_heads, num_new, width = q_BHTC.shape
    num_kv_heads, num_seen = past.k_BKSC.shape[1:3]
    if past.first < cache.sinks:
        q_BHTC, mask_TS = _inside_window(q_BHTC, cache), None
    else:
        mask_TS = _band(cache, num_new, first=past.first, num_seen=num_seen)
    repeats = num_heads // num_kv_heads
    if mask_TS is not None:
        mask_TS = mask_TS.repeat(repeats, 1)
    q_BKTC = q_BHTC.reshape(num_batch, num_kv_heads, repeats * num_new, width)
    part = attend_part(q_BKTC, past.k_BKSC, past.v_BKSC, mask=mask_TS)
    return Part(
        part.out_BHTC.reshape(q_BHTC.shape), part.lse_BHT.reshape(num_batch, num_heads, num_new)
    )


def _inside_window(q_BHTC: Tensor, cache: KVCache) -> Tensor:
    """Turn queries back to where they stand in the window: what was dropped counts no distance.

    All but the sinks are as far from a query as they were; so turning it once more is enough.
    """
    positions_T = cache.positions(q_BHTC.shape[2]).double()
    shift_T = positions_T.clamp(max=cache.capacity - 1) - positions_T
    return rotate(q_BHTC, *rope_tables(shift_T, cache.model.head_width, cache.model.rope_theta))


def _band(cache: KVCache, num_new: int, *, first: int, num_seen: int) -> Tensor | None:
    """Which of the past tokens from `first` on each new token still sees; None for all."""
    if cache.length + num_new - cache.num_recent <= first:
        return None
    query_T1 = torch.arange(cache.length, cache.length + num_new)[:, None]
    return torch.arange(first, first + num_seen) > query_T1 - cache.num_recent
