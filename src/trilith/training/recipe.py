"""A recipe: learning rate and weight decay as pure functions of the step, and the optimizer."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from torch import nn
from torch.optim import AdamW, Optimizer

from trilith.quant import SCALE_NAMES
from trilith.training.muon import Muon, MuonWithAdamW

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd", "two_stage"]
# Matrices that are no projections: they neither decay nor are orthogonalized.
_NO_PROJECTIONS = ("embedding.weight", "head.weight", *(f".{name}" for name in SCALE_NAMES))


@dataclass(frozen=True)
class Recipe:
    """How a run is optimized.

    `peak_lr` is the highest learning rate up to a width of `reference_width`; wider models take it
    times reference_width / width, as Adam's rate of hidden weights goes (muP, arXiv 2203.03466,
    table 8). Where that is null all take it as it is.

    Schedules, after a linear warm-up: "cosine" to `final_lr_share` of the peak; "wsd" stays at the
    peak and falls linearly over the last `decay_share` of the steps (MiniCPM, arXiv 2404.06395);
    "two_stage" falls linearly towards zero, drops at mid-run to `second_stage_lr_share` of the
    peak, from there linearly to `final_lr_share` (BitNet b1.58 training tips, 2024). Weight decay
    is `weight_decay`, and `second_half_weight_decay` after mid-run; it acts on projections alone.
    Optimizer "muon" updates projections by orthogonalized momentum `beta2` and leaves the rest to
    AdamW; its updates are as large as AdamW's, so that both take the same learning rates.
    During the first `dense_share` of the steps a model on a grid trains as if it were dense
    (dense first, then quantization-aware: ParetoQ, arXiv 2502.02631); over the next `ramp_share`
    its weights and activations go to the grid little by little, w + lambda (q(w) - w).
    `z_loss` times the squared log of the softmax's denominator is added to the loss (PaLM, arXiv
    2204.02311, section 5). `latent_noise` is the standard deviation, in units of a weight's scale,
    of the noise that each step adds to latent weights before it rounds them.
    """

    optimizer: OptimizerName
    schedule: Schedule
    peak_lr: float
    reference_width: int | None
    warmup_steps: int
    final_lr_share: float
    decay_share: float | None
    second_stage_lr_share: float | None
    weight_decay: float
    second_half_weight_decay: float
    beta1: float
    beta2: float
    clip_norm: float
    dense_share: float
    ramp_share: float
    z_loss: float
    latent_noise: float

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(
                f"recipe.optimizer={self.optimizer!r} is not known; choose adamw or muon"
            )
        if self.schedule not in ("cosine", "wsd", "two_stage"):
            raise ValueError(
                f"recipe.schedule={self.schedule!r} is not known; choose cosine, wsd or two_stage"
            )
        self._require_share("decay_share", self.decay_share, "wsd")
        self._require_share("second_stage_lr_share", self.second_stage_lr_share, "two_stage")
        self._require_ranges()
        strongest = max(self.weight_decay, self.second_half_weight_decay)
        if self.peak_lr * strongest > 1:
            raise ValueError(
                f"recipe.peak_lr={self.peak_lr} times weight decay {strongest} is above 1: a step "
                "would turn weights round; lower one of them"
            )

    def at_width(self, width: int) -> Self:
        """Return the recipe with the rates of a model of this width."""
        if self.reference_width is None:
            return self
        share = min(1.0, self.reference_width / width)
        return replace(self, peak_lr=self.peak_lr * share, reference_width=None)

    def learning_rate(self, step: int, num_steps: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of `num_steps`."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return self.peak_lr * self._share_after_warmup(min(1.0, progress))

    def decay(self, step: int, num_steps: int) -> float:
        """Weight decay of optimizer step `step` of `num_steps`."""
        return self.weight_decay if 2 * step < num_steps else self.second_half_weight_decay

    def quantized_share(self, step: int, num_steps: int) -> float:
        """Return lambda of step `step`: 0 for a dense model, 1 for one on its grid."""
        num_dense = math.ceil(self.dense_share * num_steps)
        if step < num_dense:
            return 0.0
        num_ramp = math.floor(self.ramp_share * num_steps)
        return min(1.0, (step - num_dense + 1) / (num_ramp + 1))

    def check_length(self, num_steps: int) -> None:
        """Refuse a run that would end before its rate has risen or its model is on the grid.

        Raises:
            ValueError: the warm-up, or the dense phase and the ramp, take all steps.
        """
        if self.warmup_steps > num_steps:
            raise ValueError(
                f"recipe.warmup_steps={self.warmup_steps} are more than the {num_steps} steps of "
                "the run; shorten the warm-up or train for longer"
            )
        if self.quantized_share(num_steps - 1, num_steps) < 1:
            raise ValueError(
                f"recipe.dense_share={self.dense_share} and ramp_share={self.ramp_share} leave no "
                f"step of {num_steps} on the grid; lower one of them or train for longer"
            )

    def _share_after_warmup(self, progress: float) -> float:
        final = self.final_lr_share
        if self.schedule == "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "wsd":
            assert self.decay_share is not None
            return final + (1 - final) * min(1.0, (1 - progress) / self.decay_share)
        assert self.second_stage_lr_share is not None
        if progress < 0.5:
            return 1 - progress
        return final + (self.second_stage_lr_share - final) * 2 * (1 - progress)

    def _require_ranges(self) -> None:
        # NaN fails every comparison, so each is written as what must hold.
        for key in ("peak_lr", "clip_norm"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"recipe.{key}={getattr(self, key)} must be positive and finite")
        if self.reference_width is not None and self.reference_width < 1:
            raise ValueError(f"recipe.reference_width={self.reference_width} must be at least 1")
        for key in (
            "warmup_steps",
            "weight_decay",
            "second_half_weight_decay",
            "z_loss",
            "latent_noise",
        ):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"recipe.{key}={getattr(self, key)} must not be negative, and be finite"
                )
        for key in ("dense_share", "ramp_share", "beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"recipe.{key}={getattr(self, key)} must lie in [0, 1)")
        if not 0 <= self.final_lr_share <= 1:
            raise ValueError(f"recipe.final_lr_share={self.final_lr_share} must lie in [0, 1]")

    def _require_share(self, key: str, value: float | None, schedule: Schedule) -> None:
        if (value is not None) != (self.schedule == schedule):
            raise ValueError(
                f"recipe.{key}={value} with schedule={self.schedule}; it belongs to "
                f"schedule={schedule}, where it is needed, and must be null otherwise"
            )
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"recipe.{key}={value} must lie in (0, 1]")


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Make the optimizer of a model; its groups say by `decays` whether weight decay acts on them.

    Projections decay; embedding, head and norms do not, and are always AdamW's.
    """
    projections: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and not name.endswith(_NO_PROJECTIONS)
        (projections if is_matrix else others).append(parameter)
    rest = [{"params": others, "decays": False, "weight_decay": 0.0}]
    if recipe.optimizer == "adamw":
        return _adamw([{"params": projections, "decays": True}, *rest], recipe)
    muon = Muon(projections, lr=recipe.peak_lr, momentum=recipe.beta2)
    muon.param_groups[0]["decays"] = True
    return MuonWithAdamW(muon, _adamw(rest, recipe))


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> AdamW:
    return AdamW(groups, lr=recipe.peak_lr, betas=(recipe.beta1, recipe.beta2), fused=True)
