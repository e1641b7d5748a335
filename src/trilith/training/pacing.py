"""Pace: which layers of a model have moved to the grid of a phase, as a function of the step.

A layer that waits is where it was before the phase: dense, or on the grid of the phase before.
Being a function of the step, the pace survives resumes and rollbacks without any state.
"""

from dataclasses import dataclass

from trilith.model import Transformer
from trilith.quant import BitLinear, QuantConfig


@dataclass(frozen=True)
class Pace:
    """The optimizer step at which each layer moves, by its name, and between which grids.

    `before` is None where layers wait as dense ones. Scales of both grids have the same shape.
    """

    before: QuantConfig | None
    after: QuantConfig
    move_steps: dict[str, int]

    def moves_at(self, step: int) -> bool:
        """True if layers move at this step; those of step 0 have moved before it."""
        return step > 0 and step in self.move_steps.values()

    def is_complete(self, step: int) -> bool:
        """True if all layers have moved once this step has begun."""
        return step >= max(self.move_steps.values())

    def refit_moving(self, model: Transformer, *, step: int) -> None:
        """Move the layers whose turn it is at this step: fit their scales to the new grid."""
        for name, layer in _layers(model):
            if step > 0 and self.move_steps[name] == step:
                layer.config = self.after
                layer.refit()

    def place(self, model: Transformer, *, step: int) -> None:
        """Put every layer on the grid that it has at this step; scales stay as they are."""
        for name, layer in _layers(model):
            if step >= self.move_steps[name]:
                layer.config = self.after
            elif self.before is not None:
                layer.config = self.before
            else:
                layer.quantized_share = 0.0


def paced(groups: list[list[str]], *, num_steps: int, move_share: float) -> dict[str, int]:
    """Return the step at which each layer moves: groups follow each other at equal distances.

    Args:
        groups: names of layers, in the order in which they move; the first moves at step 0.
        num_steps: of the phase.
        move_share: of the steps, after which the last group has moved.
    """
    distance = move_share * num_steps / len(groups)
    return {name: round(number * distance) for number, group in enumerate(groups) for name in group}


def hold_back(model: Transformer, before: Transformer, pace: Pace) -> None:
    """Make a model, all on its grid, that of step 0: layers that wait get their earlier scales."""
    earlier = dict(_layers(before))
    for name, layer in _layers(model):
        if pace.move_steps[name] > 0 and pace.before is not None:
            layer.set_kept(earlier[name])
    pace.place(model, step=0)


def _layers(model: Transformer) -> list[tuple[str, BitLinear]]:
    return [(n, layer) for n, layer in model.named_modules() if isinstance(layer, BitLinear)]
