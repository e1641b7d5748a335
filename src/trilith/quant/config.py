"""How weights and activations are quantized: one section of the configuration."""

from dataclasses import dataclass
from typing import Literal, get_args

from trilith.quant.grid import Grid, grid_named
from trilith.quant.scale import Granularity

ScaleRule = Literal["absmean", "median", "least_squares", "learned", "unit"]
# Rules whose scale is a mean or middle magnitude: it says nothing about grids of more levels.
_MAGNITUDE_RULES = ("absmean", "median")


@dataclass(frozen=True)
class QuantConfig:
    """The grid, the rule and granularity of its scales, and the activations' precision.

    Rules: "absmean" and "median" take the mean or the median magnitude of the weights (BitNet
    b1.58, arXiv 2402.17764; b1.58 Reloaded, arXiv 2407.09527), "least_squares" follows the weights
    with the smallest squared error, "learned" trains the scale (LSQ, arXiv 1902.08153), "unit"
    takes 1: the levels are the weights themselves (Trinity's formula).
    `group_size` counts inputs and belongs to granularity "group" alone; `activation_bits` is 8
    (absmax per token) or None (activations stay in floating point).
    """

    grid: str
    scale_rule: ScaleRule
    granularity: Granularity
    group_size: int | None
    activation_bits: int | None

    def __post_init__(self) -> None:
        grid = grid_named(self.grid)
        _require_choice("scale_rule", self.scale_rule, get_args(ScaleRule))
        _require_choice("granularity", self.granularity, get_args(Granularity))
        _require_choice("activation_bits", self.activation_bits, (8, None))
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"quant.group_size={self.group_size} with quant.granularity={self.granularity}; "
                "a group size belongs to granularity=group and to no other"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"quant.group_size={self.group_size} must be positive")
        if self.scale_rule in _MAGNITUDE_RULES and grid.num_levels > 3:
            raise ValueError(
                f"quant.scale_rule={self.scale_rule} does not fit grid={self.grid}: a magnitude is "
                "the scale of sign and ternary weights alone; use scale_rule=least_squares"
            )

    @property
    def levels(self) -> Grid:
        """The grid itself."""
        return grid_named(self.grid)


def _require_choice(key: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        expected = ", ".join("null" if c is None else str(c) for c in choices)
        raise ValueError(f"quant.{key}={value!r} is not known; choose one of {expected}")
