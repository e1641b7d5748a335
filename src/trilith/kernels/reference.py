"""The reference packed product: slow, whole numbers in int64, what every kernel is held to."""

import torch
from torch import Tensor

from trilith.kernels.weight import PackedWeight
from trilith.quant import numerators_of


def packed_product(values: Tensor, *, weight: PackedWeight) -> Tensor:
    """Multiply int8 activations with a packed weight, bit by bit as all kernels must.

    Args:
        values: int8 [..., I] in -127..127, as absmax activations are.
        weight: packed [O, I].

    Returns:
        float32 [..., O]: for each group the exact sum, rounded once to float32, times
        float32(scale / denominator); groups are added in order, from zero, in float32. The
        activations' own scale is the caller's to apply.
    """
    assert values.dtype == torch.int8, values.dtype
    num_groups = weight.scale.shape[1]
    group_size = weight.shape[1] // num_groups
    numerators = numerators_of(weight.codes(), weight.grid, torch.int64)
    factors = weight.scale / weight.grid.denominator
    total = torch.zeros((), device=values.device)
    for group in range(num_groups):
        inputs = slice(group * group_size, (group + 1) * group_size)
        sums = values[..., inputs].long() @ numerators[:, inputs].T
        total = total + sums.float() * factors[:, group]
    return total
