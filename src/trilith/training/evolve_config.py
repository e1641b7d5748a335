"""How the evolution goes: its phases, and what they share. One section of the configuration."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from trilith.evolution import FitMethod
from trilith.quant import QuantConfig
from trilith.training.recipe import Recipe

AnswerPacking = Literal["none", "best_fit"]


@dataclass(frozen=True)
class Phase:
    """One step of the descent: a grid, and how many steps the model trains on it; 0 fits alone."""

    quant: QuantConfig
    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"evolve.phases: num_steps={self.num_steps} must not be negative")


@dataclass(frozen=True)
class EvolveConfig:
    """Phases of the descent by name, in order, and what they share.

    Each step sees `answer_rows` instructions of at most `answer_length` tokens beside the plain
    windows of the training section. `answer_packing` says how many instructions a row of answers
    holds: one ("none"), or as many as fit ("best_fit"), which do not see each other, and then
    `answer_rows` counts rows. `fit` says how the latent weights are put on a phase's grid before
    its first step (`trilith.evolution.fit_to_grid`), and `calibration_windows` on how many windows
    of the training split it is done and its error measured. `kl_weight` times the forward KL
    divergence from the dense twin on the plain text is added to the cross-entropy. `recipe` starts
    anew with each phase.
    """

    phases: dict[str, Phase]
    recipe: Recipe
    answer_rows: int
    answer_length: int
    answer_packing: AnswerPacking
    fit: FitMethod
    calibration_windows: int
    kl_weight: float

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("evolve.phases is empty; name at least one phase")
        if self.answer_packing not in get_args(AnswerPacking):
            raise ValueError(
                f"evolve.answer_packing={self.answer_packing!r} is not known; choose none or "
                "best_fit"
            )
        self._check_fit()
        if self.answer_rows < 1 or self.answer_length < 8:
            raise ValueError(
                f"evolve.answer_rows={self.answer_rows} must be at least 1 and answer_length="
                f"{self.answer_length} at least 8"
            )
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(
                f"evolve.kl_weight={self.kl_weight} must not be negative, and be finite"
            )
        for phase in self.phases.values():
            if phase.num_steps:
                self.recipe.check_length(phase.num_steps)

    def _check_fit(self) -> None:
        if self.fit not in get_args(FitMethod):
            raise ValueError(
                f"evolve.fit={self.fit!r} is not known; choose plain, weighted or gptq"
            )
        if self.calibration_windows < 1:
            raise ValueError(
                f"evolve.calibration_windows={self.calibration_windows} must be at least 1"
            )
        for name, phase in self.phases.items():
            rule = phase.quant.scale_rule
            if self.fit != "plain" and rule not in ("least_squares", "learned"):
                raise ValueError(
                    f"evolve.fit={self.fit} with evolve.phases.{name}.quant.scale_rule={rule}, "
                    "which takes scales from the weights at each use and keeps no fitted one; use "
                    "least_squares or learned, or evolve.fit=plain"
                )
