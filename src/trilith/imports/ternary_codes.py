"""Ternary matrices of bitllama2.c, and what makes our BitLinear compute what it does with them.

It multiplies x / (|x| sqrt(n)), quantized to int8 by its largest magnitude, with codes and one
scale. Since x / (|x| sqrt(n)) is rms-normalized x over n, that is our norm with some gain in front
of a BitLinear whose scale makes up for it.
"""

import math
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Two bits a code, the first in the highest bits: 00 is 0, 01 is +1, 11 is -1, 10 is not used.
_VALUES = np.array([0, 1, np.nan, -1], dtype=np.float32)


class TernaryMatrix(NamedTuple):
    """Codes -1, 0, +1 in float32 [O, I] and the one factor of all."""

    codes: Tensor
    scale: float


def read_ternary_codes(file: IO[bytes], shape: tuple[int, int]) -> TernaryMatrix:
    """Read a scale and the codes [O, I] after it.

    A code that is none becomes NaN, which whoever loads the weights refuses.
    """
    scale = float(np.fromfile(file, "<f4", 1)[0])
    packed = np.fromfile(file, np.uint8, shape[0] * shape[1] // 4)
    codes = (packed[:, None] >> np.array([6, 4, 2, 0], dtype=np.uint8)) & 3
    return TernaryMatrix(torch.from_numpy(_VALUES[codes]).view(shape), scale)


def scale_and_gain(matrix: TernaryMatrix) -> tuple[Tensor, Tensor]:
    """Return scales [O, 1] for a BitLinear and the gain [I] of the norm in front of it.

    Their product is the factor of the file over I. A gain that is a power of two near 1 / sqrt(I)
    leaves every product as it is, and both weights of a size that an optimizer can move.
    """
    num_out, num_in = matrix.codes.shape
    gain = 2.0 ** -round(math.log2(num_in) / 2)
    scale = np.float32(matrix.scale) / np.float32(num_in * gain)
    return torch.full((num_out, 1), float(scale)), torch.full((num_in,), gain)
