"""What makes a step faster or smaller leaves its losses and gradients alone."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from tests.training.conftest import toy_model
from torch.nn import functional as F

from trilith.model import ModelConfig
from trilith.quant import BitLinear, QuantConfig
from trilith.training.acceleration import AccelerationConfig, accelerated

CPU = torch.device("cpu")
FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)


def _losses_and_gradients(
    toy: ModelConfig, config: AccelerationConfig
) -> tuple[list[float], list[torch.Tensor]]:
    model = toy_model(toy, FITTED).train()
    tokens = torch.randint(0, toy.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    with accelerated(model, config, CPU):
        for _ in range(2):
            for layer in model.modules():
                if isinstance(layer, BitLinear):
                    layer.start_step(hold=True)
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()
            losses.append(loss.item())
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "config",
    [
        AccelerationConfig("float", compile=False, checkpoint_activations=True),
        AccelerationConfig("int8", compile=False, checkpoint_activations=True),
    ],
    ids=str,
)
def test_keeping_less_gives_the_same_bits(toy: ModelConfig, config: AccelerationConfig) -> None:
    plain = AccelerationConfig(config.arithmetic, compile=False, checkpoint_activations=False)
    losses, gradients = _losses_and_gradients(toy, config)
    expected_losses, expected = _losses_and_gradients(toy, plain)
    assert losses == expected_losses
    assert all(torch.equal(mine, other) for mine, other in zip(gradients, expected, strict=True))


def test_int8_and_float_give_the_same_losses(toy: ModelConfig) -> None:
    losses, gradients = _losses_and_gradients(toy, AccelerationConfig("int8", False, False))
    expected_losses, expected = _losses_and_gradients(
        toy, AccelerationConfig("float", False, False)
    )
    # Products are equal to the bit; refined scales differ in the order of their sums.
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["float", "int8"])
def test_compiling_gives_the_same_losses(
    toy: ModelConfig, arithmetic: Literal["float", "int8"]
) -> None:
    toy = replace(toy, num_layers=1)
    compiled, gradients = _losses_and_gradients(toy, AccelerationConfig(arithmetic, True, False))
    losses, expected = _losses_and_gradients(toy, AccelerationConfig(arithmetic, False, False))
    # Fused kernels add in another order, which flips an int8 rounding now and then.
    assert compiled == pytest.approx(losses, rel=1e-4)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-2, atol=5e-4)


def test_an_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.acceleration\.arithmetic='fp4'"):
        AccelerationConfig("fp4", False, False)  # type: ignore[arg-type]
