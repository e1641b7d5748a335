"""PackedLinear: a projection that runs packed bytes. No latent weights, no gradient."""

from typing import Literal

import torch
from torch import Tensor, nn

from trilith.kernels.choice import chosen_isa, runs_triton
from trilith.kernels.gpu_layout import fits_gpu, gpu_layouts_for
from trilith.kernels.native_path import NativeProduct, fits_native, layout_in_memory
from trilith.kernels.torch_path import TorchFloatProduct, TorchProduct
from trilith.kernels.weight import PackedWeight
from trilith.quant import quantize_activation

ActivationBits = Literal[8] | None

_CPU = torch.device("cpu")


class PackedLinear(nn.Module):
    """The inference twin of `BitLinear`: the same numbers from packed codes."""

    def __init__(
        self,
        weight: PackedWeight,
        *,
        activation_bits: ActivationBits,
        num_weights: int | None = None,
        device: torch.device = _CPU,
    ) -> None:
        """Choose the kernels and put the weight where they read it.

        Args:
            weight: packed, on the CPU.
            activation_bits: 8, or None for activations in floats.
            num_weights: of all projections of the model; None for this one alone.
            device: that it is to run on; `to` does not change the choice.
        """
        super().__init__()
        self.num_out, self.num_in = weight.shape
        self.activation_bits = activation_bits
        num_weights = num_weights or self.num_out * self.num_in
        if activation_bits is None:
            self.product: nn.Module = TorchFloatProduct(weight)
        elif device.type != "cpu" or runs_triton(device):
            self.product = _gpu_product(weight, device)
        else:
            self.product = _fastest_product(weight, num_weights)
        self.to(device)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if not isinstance(self.product, TorchProduct):
            return self.product(x)
        values, scale = quantize_activation(x)
        return (self.product(values.to(torch.int8)) * scale).to(x.dtype)


def _gpu_product(weight: PackedWeight, device: torch.device) -> nn.Module:
    if not (runs_triton(device) and fits_gpu(weight)):
        return TorchProduct(weight)
    # Triton is there on GPUs alone, and takes a second to import.
    from trilith.kernels.triton_product import TritonProduct

    return TritonProduct(weight, layout=gpu_layouts_for(weight.grid)[0])


def _fastest_product(weight: PackedWeight, num_weights: int) -> nn.Module:
    isa = chosen_isa()
    if isa is None or not fits_native(weight):
        return TorchProduct(weight)
    layout = layout_in_memory(
        weight.grid,
        isa=isa,
        codec=weight.codec,
        num_weights=num_weights,
        group_in=weight.shape[1] // weight.scale.shape[1],
    )
    return NativeProduct(weight, isa, layout=layout)
