"""BitLinear: a linear layer that trains latent weights and computes with their codes.

The forward pass multiplies whole numbers (level numerators and int8 activations) exactly and scales
once, so a packed model that does the same in integers gives the same bits. The backward pass is the
straight-through one of `fake_quantize` and `fake_quantize_activation`.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilith.quant.config import QuantConfig
from trilith.quant.product import Arithmetic, StepWeight, float_product, quantized_product
from trilith.quant.quantize import (
    QuantizedWeight,
    dequantize,
    expand_scale,
    fake_quantize_activation,
    fit_scale,
    learn_scale,
    quantize,
    scale_shape,
    straight_through,
)

# What a layer keeps of its scales; the rest of its state is the latent weight.
SCALE_NAMES = ("scale", "log_scale")


class BitLinear(nn.Linear):
    """`nn.Linear` without bias whose `weight` is latent and whose product is quantized.

    Rules absmean and median take the scale from the weight at each use. Rule least_squares keeps it
    in the buffer `scale`, fitted by `refit` and refined once by each `start_step`; rule learned
    trains `log_scale`: optimizers take steps of their own size, so that these are relative.

    `quantized_share` is lambda in w + lambda (q(w) - w), for weights and activations alike: 0 is a
    plain `nn.Linear`, 1 the quantized one, and what lies between leads from one to the other.
    `arithmetic` computes all this; products have the same bits in every one.
    """

    scale: Tensor | None
    log_scale: nn.Parameter | None

    def __init__(self, num_in: int, num_out: int, config: QuantConfig) -> None:
        super().__init__(num_in, num_out, bias=False)
        self.config = config
        self.quantized_share = 1.0
        self.arithmetic = Arithmetic()
        self._is_refinement_due = False
        self._held: StepWeight | None = None
        self.register_buffer("scale", None)
        self.register_parameter("log_scale", None)
        if config.scale_rule == "least_squares":
            self.register_buffer("scale", torch.empty(scale_shape(self.weight, config)))
        if config.scale_rule == "learned":
            self.log_scale = nn.Parameter(torch.empty(scale_shape(self.weight, config)))
        self.refit()

    @torch.no_grad()
    def refit(self) -> None:
        """Fit a kept or learned scale to the weight from scratch; nothing to do for the others.

        On the meta device nothing is fitted: there is no weight.
        """
        self._held = None
        if self.weight.is_meta:
            return
        if self.scale is not None:
            self.scale.copy_(fit_scale(self.weight, self.config))
        if self.log_scale is not None:
            self.log_scale.copy_(fit_scale(self.weight, self.config).log())

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Take a fitted scale; steps go on from it as from one of `refit`.

        Raises:
            ValueError: the rule takes scales from the weight at each use and keeps none.
        """
        self._held = None
        if self.scale is not None:
            self.scale.copy_(scale)
        elif self.log_scale is not None:
            self.log_scale.copy_(scale.log())
        else:
            raise ValueError(
                f"quant.scale_rule={self.config.scale_rule} keeps no scale that could be fitted; "
                "use least_squares or learned"
            )

    @torch.no_grad()
    def set_kept(self, other: "BitLinear") -> None:
        """Take the scales that another layer of the same shape keeps, if its rule keeps any."""
        self._held = None
        for name in SCALE_NAMES:
            own, others = getattr(self, name), getattr(other, name)
            assert (own is None) == (others is None), (self.config, other.config)
            if own is not None:
                own.copy_(others)

    @torch.no_grad()
    def start_step(self, *, hold: bool, noise: Tensor | None = None) -> None:
        """Tell the layer that the weight has changed; call it before each optimizer step.

        Args:
            hold: quantize now, and keep the result for all micro-batches of this step. Without it
                each forward pass quantizes anew, which needs no memory beside the weight's.
            noise: added to the latent weight, in units of its scale, before it is quantized; the
                weight itself stays. It is as large as the weight, and needs `hold`.
        """
        self._held = None
        self._is_refinement_due = self.scale is not None
        if hold and self.quantized_share == 1:
            self._refine_if_due()
            self._held = self._step_weight(noise)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what a step held is given up."""
        self._held = None
        return super().train(mode)

    @torch.no_grad()
    def quantized_weight(self) -> QuantizedWeight:
        """Return the codes and scales that the forward pass computes with."""
        scale = self._current_scale()
        return QuantizedWeight(quantize(self.weight, scale, self.config.levels), scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if self.quantized_share == 0:
            return F.linear(x, self.weight)
        if self.training:
            self._refine_if_due()
        weight = self._held if self.training else None
        if weight is None:
            weight = self._step_weight()
        if self.quantized_share < 1:
            return self._blend(x, weight)
        latent = self.weight
        if self.log_scale is not None:
            latent = learn_scale(latent, self.log_scale, self.config)
        if self.config.activation_bits is None:
            return float_product(x, latent, weight)
        grid = self.config.levels
        return quantized_product(x, latent, weight, grid=grid, arithmetic=self.arithmetic)

    def _blend(self, x: Tensor, weight: StepWeight) -> Tensor:
        """Product of operands on their way to the grid."""
        share = self.quantized_share
        blended = straight_through(
            self.weight, self.weight.lerp(weight.quantized.to(self.weight.dtype), share)
        )
        if self.config.activation_bits is not None:
            x = straight_through(x, x.lerp(fake_quantize_activation(x), share))
        return F.linear(x, blended)

    @torch.no_grad()
    def _step_weight(self, noise: Tensor | None = None) -> StepWeight:
        latent, scale = self.weight, self._current_scale()
        if noise is not None:
            latent = latent + noise * expand_scale(scale, self.in_features)
        return self.arithmetic.step_weight(latent, scale, self.config.levels)

    def _current_scale(self) -> Tensor:
        if self.log_scale is not None:
            return self.log_scale.exp()
        if self.scale is None:
            return fit_scale(self.weight, self.config)
        # A copy: the next step refines the buffer while this one may wait for its gradient.
        return self.scale.clone()

    @torch.no_grad()
    def _refine_if_due(self) -> None:
        if not self._is_refinement_due:
            return
        self._is_refinement_due = False
        if self.scale is not None and self.quantized_share > 0:
            self.scale.copy_(self.arithmetic.refine(self.weight, self.scale, self.config))


def dequantized_weight(layer: BitLinear) -> Tensor:
    """Return the weight on its grid as the layer computes with it: float32 [O, I]."""
    return dequantize(*layer.quantized_weight(), layer.config.levels)
