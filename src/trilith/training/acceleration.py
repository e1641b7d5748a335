"""What makes a step faster or smaller and keeps its losses: arithmetic, compiler, memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from trilith.kernels import BFloat16Arithmetic, fastest_arithmetic
from trilith.model import Transformer
from trilith.quant import Arithmetic, BitLinear


@dataclass(frozen=True)
class AccelerationConfig:
    """How a step is computed.

    `arithmetic` is that of projections on a grid: "int8" where the machine has kernels for it,
    "float" whole numbers in floating point; both are exact and give the same losses. `compile`
    compiles each block with torch.compile, which takes a minute once. `checkpoint_activations`
    keeps only the inputs of each block and computes the rest again in the backward pass.
    """

    arithmetic: Literal["int8", "float"]
    compile: bool
    checkpoint_activations: bool

    def __post_init__(self) -> None:
        if self.arithmetic not in ("int8", "float"):
            raise ValueError(
                f"train.acceleration.arithmetic={self.arithmetic!r} is not known; choose int8 or "
                "float"
            )


@contextmanager
def accelerated(
    model: Transformer, config: AccelerationConfig, device: torch.device
) -> Iterator[None]:
    """Prepare the model for training; on the way out it is a plain module again."""
    layers = [layer for layer in model.modules() if isinstance(layer, BitLinear)]
    try:
        for layer in layers:
            layer.arithmetic = _arithmetic(config, device)
        model.checkpoints_blocks = config.checkpoint_activations
        if config.compile:
            for block in model.blocks:
                block.compile()
        yield
    finally:
        for layer in layers:
            layer.arithmetic = Arithmetic()
        model.checkpoints_blocks = False
        for block in model.blocks:
            block._compiled_call_impl = None


def _arithmetic(config: AccelerationConfig, device: torch.device) -> Arithmetic:
    if config.arithmetic == "int8":
        return fastest_arithmetic(device)
    return BFloat16Arithmetic() if device.type == "cuda" else Arithmetic()
