"""A packed weight: what every kernel takes, and the plan of what must hold between its parts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trilith.quant import Codec, Grid, QuantizedWeight


@dataclass(frozen=True)
class PackedWeight:
    """A projection [O, I] as bytes: levels[unpack(packed)] * scale.

    Attributes:
        packed: uint8 vector that `codec` packs codes [O, I] to, row after row.
        scale: float32 [O or 1, G]; G groups of I / G inputs.

    Raises:
        ValueError: the parts do not fit each other.
    """

    packed: Tensor
    scale: Tensor
    shape: tuple[int, int]
    grid: Grid
    codec: Codec

    def __post_init__(self) -> None:
        num_out, num_in = self.shape
        num_bytes = self.codec.num_bytes(num_out * num_in)
        if self.packed.dtype != torch.uint8 or self.packed.shape != (num_bytes,):
            raise ValueError(
                f"codec {self.codec.name} packs {num_out}x{num_in} codes to {num_bytes} bytes, got "
                f"{tuple(self.packed.shape)} {self.packed.dtype}"
            )
        if self.codec.num_codes < self.grid.num_levels:
            raise ValueError(
                f"codec {self.codec.name} holds {self.codec.num_codes} codes, too few for grid "
                f"{self.grid.name} with {self.grid.num_levels} levels"
            )
        fits = self.scale.dim() == 2 and self.scale.shape[0] in (1, num_out) and self.scale.numel()
        if not fits or self.scale.dtype != torch.float32 or num_in % self.scale.shape[1]:
            raise ValueError(
                f"scales are float32 [{num_out} or 1, a divisor of {num_in}], got "
                f"{list(self.scale.shape)} {self.scale.dtype}"
            )

    def codes(self) -> Tensor:
        """Unpack the uint8 codes [O, I].

        Raises:
            ValueError: a byte is not what the codec writes, or a code is beyond the grid.
        """
        codes = self.codec.unpack(self.packed, self.shape)
        if codes.numel() and int(codes.max()) >= self.grid.num_levels:
            raise ValueError(f"code {int(codes.max())} is not a level of grid {self.grid.name}")
        return codes


def pack_weight(weight: QuantizedWeight, *, grid: Grid, codec: Codec) -> PackedWeight:
    """Pack the codes and scales of a projection."""
    num_out, num_in = weight.codes.shape
    packed = codec.pack(weight.codes)
    return PackedWeight(packed, weight.scale.float(), (num_out, num_in), grid, codec)
