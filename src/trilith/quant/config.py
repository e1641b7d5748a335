"""How weights and activations are quantized: one section of the configuration."""

from dataclasses import dataclass
from typing import Literal

from trilith.quant.grid import Grid, grid_named
from trilith.quant.scale import Granularity

ScaleRule = Literal["absmean", "least_squares"]


@dataclass(frozen=True)
class QuantConfig:
    """The grid, the rule and granularity of its scales, and the activations' precision.

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
        _require_choice("scale_rule", self.scale_rule, ("absmean", "least_squares"))
        _require_choice("granularity", self.granularity, ("tensor", "row", "group"))
        _require_choice("activation_bits", self.activation_bits, (8, None))
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"quant.group_size={self.group_size} with quant.granularity={self.granularity}; "
                "a group size belongs to granularity=group and to no other"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"quant.group_size={self.group_size} must be positive")
        if self.scale_rule == "absmean" and grid.num_levels > 3:
            raise ValueError(
                f"quant.scale_rule=absmean does not fit grid={self.grid}: the mean magnitude is "
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
