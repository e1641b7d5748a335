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

    What evolves is `teacher`, a dense checkpoint of any kind (`trilith.imports`), or if null the
    dense twin. `recipe` starts anew with each phase. During the first `text_share` of its steps
    a phase sees plain text alone; then each step also sees `answer_rows` instructions of at most
    `answer_length` tokens. `answer_packing` says how many instructions a row of answers holds: one
    ("none"), or as many as fit ("best_fit"), which do not see each other, and then `answer_rows`
    counts rows.

    `fit` says how the latent weights are put on a phase's grid before its first step
    (`trilith.evolution.fit_to_grid`), and `calibration_windows` on how many windows of the training
    split it is done and its error measured. With a `kl_budget`, in nats, layers move to the grid in
    groups, the least sensitive first: the divergences that moves cause, each measured alone, add
    up to at most the budget in a group. Groups follow each other at equal distances over the first
    `move_share` of the steps. Without one all layers move before the first step.

    `kl_weight` times the forward KL divergence from the teacher on the plain text is added to the
    cross-entropy. With a `kl_share` it falls linearly to nothing over that share of the steps of
    all phases, so that a long evolution can learn beyond its teacher. Of the teacher's predictions
    the `top_k` likeliest count on their own, as the stage `teach` keeps them, or all of them,
    computed step by step, if that is null. `patience` validations in a row without a lower held-out
    loss end a phase; null never does. With `control` the teacher is also trained on without a grid,
    on the same batches.
    """

    phases: dict[str, Phase]
    recipe: Recipe
    teacher: str | None
    text_share: float
    answer_rows: int
    answer_length: int
    answer_packing: AnswerPacking
    fit: FitMethod
    calibration_windows: int
    kl_budget: float | None
    move_share: float | None
    kl_weight: float
    kl_share: float | None
    top_k: int | None
    patience: int | None
    control: bool

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("evolve.phases is empty; name at least one phase")
        if self.answer_packing not in get_args(AnswerPacking):
            raise ValueError(
                f"evolve.answer_packing={self.answer_packing!r} is not known; choose none or "
                "best_fit"
            )
        self._check_fit()
        self._check_pace()
        self._check_teacher()
        if not 0 <= self.text_share < 1:
            raise ValueError(f"evolve.text_share={self.text_share} must lie in [0, 1)")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"evolve.patience={self.patience} must be at least 1, or null")
        if self.answer_rows < 1 or self.answer_length < 8:
            raise ValueError(
                f"evolve.answer_rows={self.answer_rows} must be at least 1 and answer_length="
                f"{self.answer_length} at least 8"
            )
        for phase in self.phases.values():
            if phase.num_steps:
                self.recipe.check_length(phase.num_steps)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.num_steps for phase in self.phases.values())

    @property
    def num_taught_steps(self) -> int:
        """The first so many of them see the teacher's predictions."""
        if not self.kl_weight:
            return 0
        return math.ceil((self.kl_share or 1.0) * self.num_steps)

    def pull(self, step: float) -> float:
        """Share of `kl_weight` that holds at a step counted over all phases, in [0, 1]."""
        if self.kl_share is None:
            return 1.0
        return max(0.0, 1.0 - step / (self.kl_share * self.num_steps))

    def _check_teacher(self) -> None:
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(
                f"evolve.kl_weight={self.kl_weight} must not be negative, and be finite"
            )
        if self.kl_share is not None and not 0 < self.kl_share <= 1:
            raise ValueError(f"evolve.kl_share={self.kl_share} must lie in (0, 1], or be null")
        if self.kl_share is not None and not self.kl_weight:
            raise ValueError(
                f"evolve.kl_share={self.kl_share} has no effect with evolve.kl_weight=0; set it "
                "to null"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"evolve.top_k={self.top_k} must be at least 1, or null for all")
        if self.top_k is not None and not self.kl_weight:
            raise ValueError(
                f"evolve.top_k={self.top_k} has no effect with evolve.kl_weight=0; set it to null"
            )

    def _check_pace(self) -> None:
        if (self.kl_budget is None) != (self.move_share is None):
            raise ValueError(
                f"evolve.kl_budget={self.kl_budget} with evolve.move_share={self.move_share}; set "
                "both, or neither"
            )
        if self.kl_budget is None or self.move_share is None:
            return
        if not 0 < self.kl_budget < math.inf or not 0 < self.move_share <= 1:
            raise ValueError(
                f"evolve.kl_budget={self.kl_budget} must be positive and finite, and "
                f"evolve.move_share={self.move_share} lie in (0, 1]"
            )
        if self.recipe.dense_share or self.recipe.ramp_share:
            raise ValueError(
                "evolve.kl_budget with evolve.recipe.dense_share or ramp_share: both say when "
                "weights go to the grid; set the shares to 0"
            )
        kept = {
            (p.quant.scale_rule, p.quant.granularity, p.quant.group_size, p.quant.activation_bits)
            for p in self.phases.values()
        }
        if len(kept) > 1:
            raise ValueError(
                "evolve.kl_budget needs one rule and granularity of scales, and one "
                "activation_bits, in all phases: layers change their grid while they train"
            )

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
