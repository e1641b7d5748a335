"""The key/value cache of a decoding run: its precision, and which tokens it keeps.

Axes as in `attention`: B batch, K key/value heads, T new tokens, S tokens, C head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from trilith.model.cache_storage import KEY_BLOCK, FloatRows, KeyBlocks, Ring, ValueRows
from trilith.model.config import ModelConfig

CacheBits = Literal[32, 16, 8, 4]
DEFAULT_SINKS = 4
# Tokens that are read at once: what was quantized must become floats for it.
READ_TOKENS = 512


@dataclass(frozen=True)
class CacheConfig:
    """How a cache keeps what it keeps.

    Attributes:
        bits: of a number: float32, bfloat16 (it has the range of float32, and becomes one by a
            shift on every processor), or 8 or 4 bits with a scale and a zero, keys by channel in
            blocks of tokens, values by token.
        window: tokens that are kept; None for all. Those between the sinks and the newest go, and
            positions are those inside the window (StreamingLLM, arXiv 2309.17453).
        sinks: first tokens of a stream that stay in the window.
    """

    bits: CacheBits = 32
    window: int | None = None
    sinks: int = DEFAULT_SINKS

    def __post_init__(self) -> None:
        if self.bits not in get_args(CacheBits):
            raise ValueError(f"cache_bits={self.bits} is not known; choose 32, 16, 8 or 4")
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} must not be negative")
        if self.window is not None and self.window <= self.sinks:
            raise ValueError(
                f"window={self.window} has no room beside sinks={self.sinks}; widen it"
            )


class Past(NamedTuple):
    """Some tokens that were stored: float32 [B, K, S, C], and the number of the first."""

    k_BKSC: Tensor
    v_BKSC: Tensor
    first: int


class KVCache:
    """Keys and values of all layers for one batch of sequences of equal length.

    Attributes:
        capacity: tokens that it has room for; with a window, tokens that it keeps.
        length: tokens seen so far, which with a window may be any number.
        num_recent: tokens that a token sees beside the sinks, itself among them.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        batch_size: int,
        capacity: int,
        config: CacheConfig = CacheConfig(),
    ) -> None:
        self.model, self.config, self.batch_size = model, config, batch_size
        self.capacity = capacity if config.window is None else config.window
        self.sinks = 0 if config.window is None else config.sinks
        self.num_recent = self.capacity - self.sinks
        self.length = 0
        heads = (model.num_layers, batch_size, model.num_kv_heads, model.head_width)
        if config.bits >= 16:
            dtype = torch.float32 if config.bits == 32 else torch.bfloat16
            ring = Ring(self.sinks, self.num_recent)
            self.keys: FloatRows | KeyBlocks = FloatRows(heads, ring, dtype)
            self.values: FloatRows | ValueRows = FloatRows(heads, ring, dtype)
        else:
            ring = Ring(self.sinks, -(-self.num_recent // KEY_BLOCK) * KEY_BLOCK)
            self.keys = KeyBlocks(heads, ring, config.bits)
            self.values = ValueRows(heads, ring, config.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(x.nbytes for x in (*self.keys.tensors, *self.values.tensors))

    def past(self, layer: int) -> Iterator[Past]:
        """What the next token may see of the tokens before it: the sinks, then the others."""
        seen = [(0, min(self.sinks, self.length))]
        first = max(self.sinks, self.length - self.num_recent + 1)
        seen += [
            (start, min(start + READ_TOKENS, self.length))
            for start in range(first, self.length, READ_TOKENS)
        ]
        for start, end in seen:
            if start < end:
                k, v = (
                    rows.read(layer, start, end, length=self.length)
                    for rows in (self.keys, self.values)
                )
                yield Past(k, v, start)

    def write(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> None:
        """Store a layer's new keys and values, behind `length` tokens."""
        self.require_room(k_BKTC.shape[2])
        self.keys.write(layer, self.length, k_BKTC)
        self.values.write(layer, self.length, v_BKTC)

    def require_room(self, num_new: int) -> None:
        """Refuse more tokens than fit.

        Raises:
            ValueError: they do not fit; with a window, not at once.
        """
        if self.config.window is not None:
            if num_new > self.num_recent:
                raise ValueError(
                    f"{num_new} tokens at once are more than the {self.num_recent} of the window "
                    "that are no sinks; run them in parts"
                )
        elif self.length + num_new > self.capacity:
            raise ValueError(
                f"the KV cache holds {self.capacity} tokens and {self.length + num_new} are asked "
                "for; shorten the prompt or the continuation"
            )

    def positions(self, num_new: int) -> Tensor:
        """Positions of the next tokens: int64, or float64 once they leave the model's context."""
        end = self.length + num_new
        dtype = torch.float64 if end > self.model.context else torch.int64
        return torch.arange(self.length, end, dtype=dtype)

    def advance(self, num_new: int) -> None:
        """Count `num_new` tokens as seen, once all layers have stored them."""
        self.length += num_new

    def copy_from(self, other: "KVCache", *, length: int) -> None:
        """Begin as `other` began: take its first `length` tokens, to the bit.

        All of its tokens always can be taken. Fewer can where no window drops any, and with 8 or
        4 bits at the end of a block: one that was closed cannot be opened again.
        """
        assert (self.config, self.batch_size) == (other.config, other.batch_size)
        has_end = self.config.window is None
        can_stop = has_end and (self.config.bits >= 16 or length % KEY_BLOCK == 0)
        assert length == other.length or (can_stop and length < other.length), length
        assert not has_end or length <= self.capacity, length
        mine = (*self.keys.tensors, *self.values.tensors)
        theirs = (*other.keys.tensors, *other.values.tensors)
        for to, given in zip(mine, theirs, strict=True):
            # Without a window slots are in the order of the tokens, whatever the capacity.
            num = min(to.shape[3], given.shape[3])
            to[:, :, :, :num] = given[:, :, :, :num]
        self.length = length
