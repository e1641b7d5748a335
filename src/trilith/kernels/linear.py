"""PackedLinear: a projection that runs packed bytes. No latent weights, no gradient."""

from typing import Literal

import torch
from torch import Tensor, nn

from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight
from trilith.quant import quantize_activation

ActivationBits = Literal[8] | None


class PackedLinear(nn.Module):
    """The inference twin of `BitLinear`: the same numbers from packed codes."""

    def __init__(self, weight: PackedWeight, *, activation_bits: ActivationBits) -> None:
        super().__init__()
        self.num_out, self.num_in = weight.shape
        self.activation_bits = activation_bits
        self.product = (
            TorchFloatProduct(weight) if activation_bits is None else TorchProduct(weight)
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if self.activation_bits is None:
            return self.product(x)
        values, scale = quantize_activation(x)
        return (self.product(values.to(torch.int8)) * scale).to(x.dtype)
