"""Projections of Hugging Face folders whose activations are int8: transformers' `AutoBitLinear`.

Ternary ones lie four to a byte with one scale, as BitNet b1.58 publishes them. Exports of ours
write all others in floats, and keep scales and grids in `SCALES_FILE` beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trilith.imports.shards import Shards, read_tensor
from trilith.quant import QuantConfig

SCALES_FILE = "scales.trilith"
# What safetensors calls the dtype of weights that lie four to a byte.
PACKED = "U8"
_CODES_PER_BYTE = 4
_ACTIVATION_BITS = 8
_READ = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}


@dataclass(frozen=True)
class BitNetLayers:
    """Scales [O, G] of the projections by their names in the folder, and what all share.

    With granularity "tensor" all of those that become one of ours have the same scale [1, 1].
    """

    quant: QuantConfig
    scales: dict[str, Tensor]

    def fused_scale(self, names: Sequence[str]) -> Tensor:
        """Return the scales of projections that become one of ours."""
        scales = [self.scales[name] for name in names]
        return scales[0] if self.quant.granularity == "tensor" else torch.cat(scales)


def reads_quantization(section: Any) -> bool:
    """Tell whether a `quantization_config` is of layers that are read here."""
    if not isinstance(section, dict) or section.get("use_rms_norm"):
        return False
    # transformers leaves the head alone unless told otherwise.
    is_head_float = section.get("modules_to_not_convert") in (None, ["lm_head"])
    return is_head_float and all(section.get(key) == value for key, value in _READ.items())


def packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in the file of a weight [O, I] that lies four to a byte."""
    return shape[0] // _CODES_PER_BYTE, *shape[1:]


def read_projection(shards: Shards, name: str) -> Tensor:
    """Return one weight in float32 [O, I].

    A packed code that is none becomes NaN, which whoever loads the weights refuses.
    """
    weight = read_tensor(shards, f"{name}.weight")
    if shards.dtypes[f"{name}.weight"] != PACKED:
        return weight
    packed = weight.to(torch.uint8)
    codes = torch.cat([(packed >> (2 * place)) & 3 for place in range(_CODES_PER_BYTE)])
    values = torch.tensor([-1.0, 0.0, 1.0, torch.nan])[codes.int()]
    return values * read_tensor(shards, f"{name}.weight_scale")


def read_bitnet_layers(shards: Shards, groups: Sequence[Sequence[str]]) -> BitNetLayers:
    """Read the scales of all projections.

    Args:
        shards: the opened weights.
        groups: names of the projections, those together that become one of ours.

    Raises:
        FileNotFoundError: scales of weights in floats are missing.
        ValueError: the projections are not all on one grid with scales of one kind.
    """
    names = [name for group in groups for name in group]
    floats = [name for name in names if shards.dtypes[f"{name}.weight"] != PACKED]
    found = _beside(shards.folder, floats)
    for name in set(names) - set(floats):
        scale = read_tensor(shards, f"{name}.weight_scale").view(1, 1)
        found[name] = _Scaled("ternary", scale)
    for name, scaled in found.items():
        _require_scale(scaled.scale, shards, name)
    quant = _quant_of(shards, found, groups)
    scales = {name: scaled.scale for name, scaled in found.items()}
    if quant.granularity != "tensor":
        num_out = {name: _num_rows(shards, f"{name}.weight") for name in names}
        scales = {name: scale.expand(num_out[name], -1) for name, scale in scales.items()}
    return BitNetLayers(quant, scales)


class _Scaled(NamedTuple):
    """What a projection is multiplied by [O or 1, G], and the grid of what is multiplied."""

    grid: str
    scale: Tensor


def _quant_of(
    shards: Shards, found: dict[str, _Scaled], groups: Sequence[Sequence[str]]
) -> QuantConfig:
    """The quantization that keeps each scale as it is."""
    num_in = {name: shards.shapes[f"{name}.weight"][1] for name in found}
    grids = {scaled.grid for scaled in found.values()}
    sizes = {num_in[name] // scaled.scale.shape[1] for name, scaled in found.items()}
    is_grouped = any(scaled.scale.shape[1] > 1 for scaled in found.values())
    if len(grids) > 1 or (is_grouped and len(sizes) > 1):
        raise ValueError(
            f"{shards.folder} mixes grids or sizes of groups, which a checkpoint cannot hold; "
            "start from the checkpoint that it was made from"
        )
    (grid,) = grids
    if is_grouped:
        return QuantConfig(grid, "least_squares", "group", sizes.pop(), _ACTIVATION_BITS)
    shared = all(_share_one_scale([found[name].scale for name in group]) for group in groups)
    return QuantConfig(grid, "least_squares", "tensor" if shared else "row", None, _ACTIVATION_BITS)


def _require_scale(scale: Tensor, shards: Shards, name: str) -> None:
    num_out, num_in = _num_rows(shards, f"{name}.weight"), shards.shapes[f"{name}.weight"][1]
    fits = scale.dim() == 2 and len(scale) in (1, num_out) and num_in % scale.shape[1] == 0
    if not (fits and scale.isfinite().all() and (scale > 0).all()):
        raise ValueError(
            f"{shards.folder} holds scales {list(scale.shape)} for {name}, expected positive ones "
            f"for its {num_out} rows; get another copy of the folder"
        )


def _num_rows(shards: Shards, name: str) -> int:
    return shards.shapes[name][0] * (_CODES_PER_BYTE if shards.dtypes[name] == PACKED else 1)


def _beside(folder: Path, names: list[str]) -> dict[str, _Scaled]:
    """Read scales and grids of the projections that are in floats."""
    path = folder / SCALES_FILE
    if not names:
        return {}
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, and {names[0]} is in floats behind int8 activations, which "
            "say no grid; copy the whole folder, or import the model that it was made from"
        )
    try:
        with safe_open(path, framework="pt") as content:
            grids = content.metadata() or {}
            return {name: _Scaled(grids[name], content.get_tensor(name)) for name in names}
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} is cut or of another folder ({error}); copy it again") from None


def _share_one_scale(scales: list[Tensor]) -> bool:
    return all(scale.numel() == 1 and scale.equal(scales[0]) for scale in scales)
