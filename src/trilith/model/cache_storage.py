"""Where a cache keeps its rows: as floats, or in 8 or 4 bits that are made once.

A row is the key or value of one token in one head of one layer. The first `sinks` tokens stay;
all others share a ring of slots, in which the newest takes the place of the oldest.
Axes: L layers, B batch, K key/value heads, S tokens or slots, C head width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Tokens whose keys share a scale per channel; also KEY_BLOCK of cache.h.
KEY_BLOCK = 32


class Ring(NamedTuple):
    """Slots of tokens: `sinks` first ones that stay, then `size` that go round."""

    sinks: int
    size: int

    @property
    def num_slots(self) -> int:
        return self.sinks + self.size

    def runs(self, first: int, last: int) -> Iterator[slice]:
        """Slots of tokens first .. last - 1 in their order, as slices without gaps."""
        while first < last:
            if first < self.sinks:
                at, end = first, self.sinks
            else:
                at, end = self.sinks + (first - self.sinks) % self.size, self.num_slots
            num = min(last - first, end - at)
            yield slice(at, at + num)
            first += num


class Range(NamedTuple):
    """Numbers as steps of `scale` above `zero`, one pair for all that share a range."""

    codes: Tensor  # uint8, 0 .. 2^bits - 1
    scale: Tensor  # bfloat16
    zero: Tensor  # bfloat16

    def restore(self) -> Tensor:
        """Return the float32 numbers."""
        return self.codes.float() * self.scale.float() + self.zero.float()


def quantize_range(x: Tensor, *, dim: int, bits: int) -> Range:
    """Quantize x between its smallest and largest number along `dim` (KIVI, arXiv 2402.02750).

    Scale and zero are rounded to bfloat16 before the codes are chosen: that has the range of
    float32, and costs no precision but at the ends.
    """
    steps = 2**bits - 1
    zero = x.amin(dim, keepdim=True).bfloat16()
    scale = ((x.amax(dim, keepdim=True) - zero.float()) / steps).bfloat16()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = ((x - zero.float()) / scale.float()).round().clamp(0, steps)
    return Range(codes.to(torch.uint8), scale, zero)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., C] to bytes; of 4 bits, byte i holds i (low half) and i + C/2 (high half)."""
    if bits == 8:
        return codes
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack_codes`."""
    return packed if bits == 8 else torch.cat([packed & 15, packed >> 4], dim=-1)


class FloatRows:
    """Rows in float32 or bfloat16."""

    def __init__(self, shape_LBKC: tuple[int, ...], ring: Ring, dtype: torch.dtype) -> None:
        *heads, width = shape_LBKC
        self.ring = ring
        self.rows = torch.empty(*heads, ring.num_slots, width, dtype=dtype)

    def write(self, layer: int, first: int, x_BKTC: Tensor) -> None:
        """Store the rows of tokens from `first` on."""
        for slots in self.ring.runs(first, first + x_BKTC.shape[2]):
            num = slots.stop - slots.start
            self.rows[layer, :, :, slots] = x_BKTC[:, :, :num]
            x_BKTC = x_BKTC[:, :, num:]

    def read(self, layer: int, first: int, last: int, *, length: int) -> Tensor:
        """Rows of tokens first .. last - 1 as float32; a view where they lie together."""
        runs = [self.rows[layer, :, :, slots] for slots in self.ring.runs(first, last)]
        return (runs[0] if len(runs) == 1 else torch.cat(runs, dim=2)).float()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.rows,)


class ValueRows:
    """Rows in 8 or 4 bits, each with a scale and a zero of its own."""

    def __init__(self, shape_LBKC: tuple[int, ...], ring: Ring, bits: int) -> None:
        *heads, width = shape_LBKC
        self.ring, self.bits = ring, bits
        self.codes = torch.zeros(*heads, ring.num_slots, width * bits // 8, dtype=torch.uint8)
        self.scale, self.zero = torch.zeros(2, *heads, ring.num_slots, 1, dtype=torch.bfloat16)

    def write(self, layer: int, first: int, x_BKTC: Tensor) -> None:
        """Quantize and store the rows of tokens from `first` on."""
        made = quantize_range(x_BKTC.float(), dim=-1, bits=self.bits)
        parts = pack_codes(made.codes, self.bits), made.scale, made.zero
        at = 0
        for slots in self.ring.runs(first, first + x_BKTC.shape[2]):
            num = slots.stop - slots.start
            for rows, part in zip(self.tensors, parts, strict=True):
                rows[layer, :, :, slots] = part[:, :, at : at + num]
            at += num

    def read(self, layer: int, first: int, last: int, *, length: int) -> Tensor:
        """Rows of tokens first .. last - 1 as float32."""
        runs = []
        for slots in self.ring.runs(first, last):
            packed, scale, zero = (rows[layer, :, :, slots] for rows in self.tensors)
            runs.append(Range(unpack_codes(packed, self.bits), scale, zero).restore())
        return torch.cat(runs, dim=2)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.codes, self.scale, self.zero


class KeyBlocks:
    """Rows in 8 or 4 bits, by channel in blocks of tokens.

    Sinks, which have the outliers, and the newest block until it is full stay in bfloat16 (`near`);
    then the block is quantized, once.
    """

    def __init__(self, shape_LBKC: tuple[int, ...], ring: Ring, bits: int) -> None:
        *heads, width = shape_LBKC
        assert ring.size % KEY_BLOCK == 0, ring
        self.ring, self.bits = ring, bits
        self.codes = torch.zeros(*heads, ring.size, width * bits // 8, dtype=torch.uint8)
        blocks = (*heads, ring.size // KEY_BLOCK, width)
        self.scale, self.zero = torch.zeros(2, *blocks, dtype=torch.bfloat16)
        self.near = torch.zeros(*heads, ring.sinks + KEY_BLOCK, width, dtype=torch.bfloat16)

    def write(self, layer: int, first: int, x_BKTC: Tensor) -> None:
        """Store the rows of tokens from `first` on; quantize the blocks that they fill."""
        sinks = self.ring.sinks
        while x_BKTC.shape[2]:
            is_sink = first < sinks
            at = first if is_sink else sinks + (first - sinks) % KEY_BLOCK
            end = sinks if is_sink else sinks + KEY_BLOCK
            num = min(x_BKTC.shape[2], end - at)
            self.near[layer, :, :, at : at + num] = x_BKTC[:, :, :num]
            if not is_sink and at + num == end:
                self._close(layer, (first - sinks) // KEY_BLOCK)
            first, x_BKTC = first + num, x_BKTC[:, :, num:]

    def read(self, layer: int, first: int, last: int, *, length: int) -> Tensor:
        """Rows of tokens first .. last - 1, of `length` that were stored, as float32."""
        sinks = self.ring.sinks
        open_first = sinks + max(0, length - sinks) // KEY_BLOCK * KEY_BLOCK
        runs = [self.near[layer, :, :, first : min(last, sinks)].float()]
        for slots in self.ring.runs(max(first, sinks), min(last, open_first)):
            runs.append(self._restore(layer, torch.arange(slots.start, slots.stop) - sinks))
        near_first, near_last = max(first, open_first), max(last, open_first)
        offset = open_first - sinks
        runs.append(self.near[layer, :, :, near_first - offset : near_last - offset].float())
        return torch.cat(runs, dim=2)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.codes, self.scale, self.zero, self.near

    def _close(self, layer: int, block: int) -> None:
        block %= self.ring.size // KEY_BLOCK
        full_BKSC = self.near[layer, :, :, self.ring.sinks :].float()
        made = quantize_range(full_BKSC, dim=2, bits=self.bits)
        slots = slice(block * KEY_BLOCK, (block + 1) * KEY_BLOCK)
        self.codes[layer, :, :, slots] = pack_codes(made.codes, self.bits)
        self.scale[layer, :, :, block] = made.scale[:, :, 0]
        self.zero[layer, :, :, block] = made.zero[:, :, 0]

    def _restore(self, layer: int, index_S: Tensor) -> Tensor:
        codes = unpack_codes(self.codes[layer][:, :, index_S], self.bits)
        scale, zero = (x[layer][:, :, index_S // KEY_BLOCK] for x in (self.scale, self.zero))
        return Range(codes, scale, zero).restore()
