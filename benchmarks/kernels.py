"""Packed products: 10^9 multiply-adds a second of every native kernel, torch beside them.

    python benchmarks/kernels.py --grid ternary --threads 1

Quantization of the activations is part of the time. Arms take turns and medians are shown. Each
product is timed on `--weights-mb` of weights in turn: more than the caches hold shows decoding as
it is in a large model, 0 keeps one weight in the cache.
"""

import argparse
import json
import time
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from torch import nn

from trilith.hardware import device_name, prepare_cpu
from trilith.kernels import (
    Isa,
    NativeProduct,
    PackedWeight,
    TorchProduct,
    available_isas,
    layouts_for,
    pack_weight,
)
from trilith.kernels.choice import ISA_NUMBERS
from trilith.quant import GRIDS, QuantizedWeight, codecs_for, quantize_activation

SHAPES = ((768, 768), (2048, 2048), (5632, 2048), (2048, 5632))


class TorchArm(nn.Module):
    """The torch path from float activations on, as `PackedLinear` runs it."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.product = TorchProduct(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, scale = quantize_activation(x)
        return self.product(values.to(torch.int8)) * scale


@torch.inference_mode()
def main() -> None:
    """Time all arms on all shapes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", choices=GRIDS, default="ternary")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--weights-mb", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    layouts = layouts_for(GRIDS[options.grid])
    names = [*(f"{isa} {layout}" for isa in available_isas() for layout in layouts), "torch"]
    print(f"{'outputs x inputs':<18}{'tokens':>8}" + "".join(f"{name:>14}" for name in names))
    rows = []
    for shape in SHAPES:
        weight = random_weight(shape, options.grid)
        arms = {name: copies(weight, name, options.weights_mb) for name in names}
        for num_tokens in options.tokens:
            x = torch.randn(num_tokens, shape[1])
            seconds = time_arms(arms, x, options.repeats)
            work = shape[0] * shape[1] * num_tokens
            gmacs = {name: work / value / 1e9 for name, value in seconds.items()}
            rows.append({"shape": shape, "tokens": num_tokens, "gmac_per_s": gmacs})
            figures = "".join(f"{gmacs[name]:>14.1f}" for name in names)
            print(f"{f'{shape[0]} x {shape[1]}':<18}{num_tokens:>8}{figures}", flush=True)
    print(f"10^9 multiply-adds/s, {options.grid}, {options.threads} threads, {device_name()}")
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        content = {"hardware": {"device": device_name()}, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def random_weight(shape: tuple[int, int], grid_name: str) -> PackedWeight:
    """Draw codes; one scale for all."""
    grid = GRIDS[grid_name]
    codes = torch.randint(0, grid.num_levels, shape, dtype=torch.uint8)
    weight = QuantizedWeight(codes, torch.ones(1, 1))
    return pack_weight(weight, grid=grid, codec=codecs_for(grid.num_levels)[0])


def copies(weight: PackedWeight, name: str, weights_mb: float) -> list[nn.Module]:
    """Build as many equal products as make up `weights_mb` of buffers, at least one."""

    def build() -> nn.Module:
        if name == "torch":
            return TorchArm(weight)
        isa, layout = name.split()
        return NativeProduct(weight, Isa(isa, ISA_NUMBERS[isa]), layout=layout)  # type: ignore[arg-type]

    first = build()
    num_bytes = sum(buffer.nbytes for buffer in first.buffers())
    return [first, *(build() for _ in range(int(weights_mb * 1e6 / num_bytes)))]


def time_arms(arms: dict[str, list[nn.Module]], x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of one product for each arm, after one call of each copy."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for products in arms.values():
        for product in products:
            product(x)
    turns = {name: cycle(products) for name, products in arms.items()}
    for _ in range(repeats):
        for name, turn in turns.items():
            product = next(turn)
            start = time.perf_counter()
            product(x)
            samples[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in samples.items()}


if __name__ == "__main__":
    main()
