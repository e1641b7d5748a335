"""What a packed file weighs, part by part, and how its weights are spread over the levels."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trilith.model import Transformer
from trilith.packed.manifest import PARTS
from trilith.packed.read import PackedFile
from trilith.quant import grid_named


@dataclass(frozen=True)
class PackReport:
    """Sizes of a packed file.

    Attributes:
        bytes_by_part: codes, scales, dense (projections kept in bfloat16), embedding, head, norms,
            biases, tokenizer (row scales count with their part) and manifest (the file's whole
            header); they add up to `file_bytes` exactly.
        bits_per_weight: bits of codes, scales and dense projections per projection weight.
        bits_per_parameter: bits of all weights and scales per parameter; a tied head counts once.
        code_counts: for each grid, how many weights take each of its levels, lowest level first.
    """

    path: Path
    file_bytes: int
    bytes_by_part: dict[str, int]
    num_weights: int
    num_parameters: int
    bits_per_weight: float
    bits_per_parameter: float
    code_counts: dict[str, list[int]]


class Histogram(NamedTuple):
    """Counts [N] of the values between edges [N + 1]."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


def measure(file: PackedFile) -> PackReport:
    """Measure a packed file that was read.

    Raises:
        ValueError: it holds no projections.
    """
    file_bytes = file.path.stat().st_size
    by_part = dict.fromkeys(PARTS, 0)
    num_weights = num_parameters = 0
    for name, entry in file.manifest.tensors.items():
        tensor = file.tensors[name]
        by_part[entry.part] += tensor.numel() * tensor.element_size()
        count = int(np.prod(entry.codes.shape)) if entry.codes else tensor.numel()
        if entry.part in ("codes", "dense"):
            num_weights += count
        if entry.part not in ("scales", "tokenizer") and not name.endswith(".scale"):
            num_parameters += count
    if not num_weights:
        raise ValueError(f"{file.path} holds no projections; pack the model again")
    bytes_by_part = by_part | {"manifest": file.header_bytes}
    assert sum(bytes_by_part.values()) == file_bytes, (bytes_by_part, file_bytes)
    projections = by_part["codes"] + by_part["scales"] + by_part["dense"]
    parameters = sum(by_part.values()) - by_part["tokenizer"]
    return PackReport(
        path=file.path,
        file_bytes=file_bytes,
        bytes_by_part=bytes_by_part,
        num_weights=num_weights,
        num_parameters=num_parameters,
        bits_per_weight=8 * projections / num_weights,
        bits_per_parameter=8 * parameters / num_parameters,
        code_counts=_code_counts(file),
    )


def latent_histogram(model: Transformer, *, num_bins: int) -> Histogram:
    """Count the latent weights of all projections in equal bins from -max to max."""
    weights = [m.weight.detach() for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    largest = max(float(weight.abs().max()) for weight in weights) or 1.0
    edges = np.linspace(-largest, largest, num_bins + 1)
    counts = np.zeros(num_bins, dtype=np.int64)
    for weight in weights:
        # float32 and clipped: a bfloat16 weight has no numpy form, and the outer edges are float64.
        values = weight.float().cpu().numpy().clip(-largest, largest)
        counts += np.histogram(values, bins=edges)[0]
    return Histogram(edges, counts)


def _code_counts(file: PackedFile) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {}
    for name, entry in file.manifest.tensors.items():
        if entry.codes is None:
            continue
        num_levels = grid_named(entry.codes.grid).num_levels
        codes = file.packed_weight(name.removesuffix(".codes")).codes()
        found = codes.flatten().bincount(minlength=num_levels).tolist()
        before = counts.get(entry.codes.grid, [0] * num_levels)
        counts[entry.codes.grid] = [a + b for a, b in zip(before, found, strict=True)]
    return counts
