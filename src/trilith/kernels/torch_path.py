"""The portable kernel: unpacks once into float32 whole numbers and multiplies with torch."""

import torch
from torch import Tensor, nn

from trilith.kernels.weight import PackedWeight
from trilith.quant import dequantize, integer_product, numerators_of


class TorchProduct(nn.Module):
    """int8 activations [..., I] -> float32 [..., O], equal to `packed_product` bit for bit."""

    numerators: Tensor
    scale: Tensor

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.grid = weight.grid
        self.register_buffer("numerators", numerators_of(weight.codes(), weight.grid))
        self.register_buffer("scale", weight.scale.clone())

    def forward(self, values: Tensor) -> Tensor:
        """Multiply int8 [..., I] in -127..127; the activations' own scale is left to the caller."""
        assert values.dtype == torch.int8, values.dtype
        return integer_product(values.float(), self.numerators, self.scale, self.grid)


class TorchFloatProduct(nn.Module):
    """Float activations [..., I] -> [..., O], for models whose activations stay in floats."""

    weight: Tensor

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.register_buffer("weight", dequantize(weight.codes(), weight.scale, weight.grid))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., I] with the dequantized weight."""
        return x @ self.weight.to(x.dtype).T
