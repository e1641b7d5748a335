"""Codecs: codes to bytes and back, exactly, for any number of codes.

Bits fill from the low end and digits from the low power, so the first code of a byte is its
remainder; the last byte is padded with code 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """Packs `codes_per_unit` codes below `num_codes` into `bytes_per_unit` bytes."""

    name: str
    num_codes: int
    codes_per_unit: int
    bytes_per_unit: int

    def num_bytes(self, num_codes: int) -> int:
        """Bytes that `num_codes` codes take."""
        return -(-num_codes // self.codes_per_unit) * self.bytes_per_unit

    def pack(self, codes: Tensor) -> Tensor:
        """Pack uint8 codes of any shape, in row-major order, to a uint8 vector.

        Raises:
            ValueError: a code is too large for the codec, or the codes are not uint8.
        """
        flat = self._checked(codes).reshape(-1)
        padding = -flat.numel() % self.codes_per_unit
        units = torch.cat([flat, flat.new_zeros(padding)]).view(-1, self.codes_per_unit)
        weights = torch.tensor([self.num_codes**i for i in range(self.codes_per_unit)])
        values = (units.int() * weights.to(units.device, torch.int32)).sum(dim=1, dtype=torch.int32)
        shifts = torch.arange(0, 8 * self.bytes_per_unit, 8, device=units.device)
        return ((values[:, None] >> shifts) & 0xFF).to(torch.uint8).view(-1)

    def unpack(self, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Unpack a uint8 vector to uint8 codes of the given shape.

        Raises:
            ValueError: the length, a value or the padding is not what `pack` writes.
        """
        count = self._checked_count(packed, shape)
        units = packed.view(-1, self.bytes_per_unit).int()
        shifts = torch.arange(0, 8 * self.bytes_per_unit, 8, device=packed.device)
        values = (units << shifts).sum(dim=1, dtype=torch.int32)
        if values.numel() and int(values.max()) >= self.num_codes**self.codes_per_unit:
            raise ValueError(f"a byte is not a value of codec {self.name}")
        digits = []
        for _ in range(self.codes_per_unit):
            digits.append((values % self.num_codes).to(torch.uint8))
            values = values // self.num_codes
        codes = torch.stack(digits, dim=1).view(-1)
        if codes[count:].any():
            raise ValueError(f"the padding of codec {self.name} is not zero")
        return codes[:count].view(shape)

    def check_padding(self, packed: Tensor, shape: tuple[int, ...]) -> None:
        """Look at the last unit alone of what `unpack` takes.

        Raises:
            ValueError: its values or its padding are not what `pack` writes.
        """
        count = self._checked_count(packed, shape)
        rest = count % self.codes_per_unit
        if rest:
            self.unpack(self._last_unit(packed), (rest,))

    def codes_of_digits(self) -> list[int]:
        """Return the code of each number that the digits of a code make."""
        return list(range(self.num_codes))

    def _last_unit(self, packed: Tensor) -> Tensor:
        return packed[-self.bytes_per_unit :]

    def _checked(self, codes: Tensor) -> Tensor:
        """Return codes that this codec can pack."""
        if codes.dtype != torch.uint8:
            raise ValueError(f"codec {self.name} packs uint8 codes, got {codes.dtype}")
        if codes.numel() and int(codes.max()) >= self.num_codes:
            raise ValueError(f"code {int(codes.max())} does not fit codec {self.name}")
        return codes

    def _checked_count(self, packed: Tensor, shape: tuple[int, ...]) -> int:
        """Return how many codes of this shape the bytes hold."""
        count = int(torch.Size(shape).numel())
        if packed.dtype != torch.uint8 or packed.numel() != self.num_bytes(count):
            raise ValueError(
                f"codec {self.name} expects {self.num_bytes(count)} bytes (uint8) for shape "
                f"{tuple(shape)}, got {packed.numel()} ({packed.dtype})"
            )
        return count


@dataclass(frozen=True)
class PlanesCodec(Codec):
    """Packs each of nine codes as two ternary digits: all first ones in base 3, then all second."""

    def pack(self, codes: Tensor) -> Tensor:
        """Pack as `Codec.pack`: the bytes of plane a, then those of plane b."""
        digits = torch.tensor(_PLANE_DIGITS, dtype=torch.uint8, device=codes.device)
        planes = digits[self._checked(codes).reshape(-1).int()]
        return torch.cat([BASE3.pack(planes[:, 0]), BASE3.pack(planes[:, 1])])

    def unpack(self, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Unpack as `Codec.unpack`."""
        count = self._checked_count(packed, shape)
        first, second = packed.view(2, -1)
        pairs = BASE3.unpack(first, (count,)) * 3 + BASE3.unpack(second, (count,))
        code_of = torch.tensor(self.codes_of_digits(), dtype=torch.uint8, device=packed.device)
        return code_of[pairs.int()].view(shape)

    def codes_of_digits(self) -> list[int]:
        """Return the code of each number 3 a + b."""
        return [_PLANE_DIGITS.index((a, b)) for a in range(3) for b in range(3)]

    def _last_unit(self, packed: Tensor) -> Tensor:
        return packed.view(2, -1)[:, -1]


# Digits a and b of the levels (a - 1) / 5 + (b - 1) / 3 of grid `planes`, sorted upwards.
_PLANE_DIGITS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (2, 1), (1, 2), (2, 2))

BASE3 = Codec("base3", num_codes=3, codes_per_unit=5, bytes_per_unit=1)
BITS1 = Codec("bits1", num_codes=2, codes_per_unit=8, bytes_per_unit=1)
BITS2 = Codec("bits2", num_codes=4, codes_per_unit=4, bytes_per_unit=1)
BITS3 = Codec("bits3", num_codes=8, codes_per_unit=8, bytes_per_unit=3)
# Of embedding and head alone.
BITS4 = Codec("bits4", num_codes=16, codes_per_unit=2, bytes_per_unit=1)
PLANES = PlanesCodec("planes", num_codes=9, codes_per_unit=5, bytes_per_unit=2)

CODECS = {codec.name: codec for codec in (BASE3, BITS1, BITS2, BITS3, PLANES)}


def codecs_for(num_levels: int) -> list[Codec]:
    """Codecs that hold codes of a grid with `num_levels` levels, smallest bytes first."""
    fitting = [codec for codec in CODECS.values() if codec.num_codes >= num_levels]
    return sorted(fitting, key=lambda codec: codec.bytes_per_unit / codec.codes_per_unit)
