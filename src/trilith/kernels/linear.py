"""PackedLinear: a projection that runs packed bytes. No latent weights, no gradient."""

from typing import Literal

import torch
from torch import Tensor, nn

from trilith.kernels.choice import chosen_isa
from trilith.kernels.native_path import NativeProduct, fits_native, layout_in_memory
from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight
from trilith.quant import quantize_activation

ActivationBits = Literal[8] | None


class PackedLinear(nn.Module):
    """The inference twin of `BitLinear`: the same numbers from packed codes."""

    def __init__(
        self,
        weight: PackedWeight,
        *,
        activation_bits: ActivationBits,
        num_weights: int | None = None,
    ) -> None:
        """`num_weights` counts those of all projections of the model, or of this one alone."""
        super().__init__()
        self.num_out, self.num_in = weight.shape
        self.activation_bits = activation_bits
        self.product = _fastest_product(
            weight, activation_bits, num_weights or self.num_out * self.num_in
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if not isinstance(self.product, TorchProduct):
            return self.product(x)
        values, scale = quantize_activation(x)
        return (self.product(values.to(torch.int8)) * scale).to(x.dtype)


def _fastest_product(
    weight: PackedWeight, activation_bits: ActivationBits, num_weights: int
) -> nn.Module:
    if activation_bits is None:
        return TorchFloatProduct(weight)
    isa = chosen_isa()
    if isa is None or not fits_native(weight):
        return TorchProduct(weight)
    layout = layout_in_memory(
        weight.grid,
        codec=weight.codec,
        num_weights=num_weights,
        group_in=weight.shape[1] // weight.scale.shape[1],
    )
    return NativeProduct(weight, isa, layout=layout)
