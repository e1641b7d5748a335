"""Spikes: seen within a step, undone by a rollback in the same process, answered by a lower LR."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import lightning
import torch
from torch import Tensor

from trilith.training.module import LanguageModule, ends_step, starts_step

# Turns a median absolute deviation into the standard deviation of a Gaussian.
_MAD_TO_SIGMA = 1.4826
# A run of equal losses must not make every small change a spike.
_MIN_SIGMA = 0.01


@dataclass(frozen=True)
class StabilityConfig:
    """When a loss is a spike, and what is done about it. Windows and intervals count steps."""

    window: int
    min_history: int
    spike_sigmas: float
    snapshot_every: int
    lr_factor: float
    recovery_steps: int
    max_rollbacks: int

    def __post_init__(self) -> None:
        if not 2 <= self.min_history <= self.window:
            raise ValueError(
                f"stability.min_history={self.min_history} must lie in 2..window={self.window}"
            )
        if not 0 < self.lr_factor <= 1 or self.recovery_steps < 1 or self.snapshot_every < 1:
            raise ValueError(
                f"stability: lr_factor={self.lr_factor} must lie in (0, 1], recovery_steps="
                f"{self.recovery_steps} and snapshot_every={self.snapshot_every} be at least 1"
            )


class SpikeDetector:
    """Robust z-score of the loss over the last steps; NaN and infinity at once."""

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)

    def check(self, loss_nats: float, grad_norm: float) -> str | None:
        """Say why this step is bad, or take its loss into the window and return None."""
        if not math.isfinite(loss_nats) or not math.isfinite(grad_norm):
            return f"loss {loss_nats}, gradient norm {grad_norm}"
        if len(self.losses) >= self.config.min_history:
            center = median(self.losses)
            deviation = median(abs(loss - center) for loss in self.losses)
            sigmas = (loss_nats - center) / max(_MIN_SIGMA, _MAD_TO_SIGMA * deviation)
            if sigmas > self.config.spike_sigmas:
                return f"loss {loss_nats:.3f} is {sigmas:.1f} sigmas above {center:.3f}"
        self.losses.append(loss_nats)
        return None


class StabilityCallback(lightning.Callback):
    """Keeps a good snapshot on the CPU; after a spike restores it and skips the bad batches.

    `alert` gets a title and a text for every event. Events and the window survive a resume.
    """

    def __init__(self, config: StabilityConfig, alert: Callable[[str, str], None]) -> None:
        self.config = config
        self.alert = alert
        self.detector = SpikeDetector(config)
        self.events: list[dict[str, Any]] = []
        self.num_rollbacks = 0
        self.last_cut_step: int | None = None
        self.snapshot: dict[str, Any] | None = None

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, LanguageModule)
        if not starts_step(trainer, batch_idx):
            return
        step = trainer.global_step
        share = module.recipe.quantized_share
        if step and share(step - 1, module.num_steps) != share(step, module.num_steps):
            # The loss jumps when the weights first go on the grid: losses before say nothing.
            self.detector.losses.clear()
        if step % self.config.snapshot_every == 0 or self.snapshot is None:
            self.snapshot = _copy_to_cpu(_state(trainer, module))
        module.lr_factor = self._lr_factor(step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, LanguageModule)
        if not ends_step(trainer, batch_idx):
            return
        reason = self.detector.check(float(module.loss_nats), float(module.grad_norm))
        if reason is None:
            return
        step = trainer.global_step
        self._record(step, "spike", reason)
        if self.num_rollbacks >= self.config.max_rollbacks:
            self._record(step, "stop", f"{self.num_rollbacks} rollbacks did not help")
            raise ValueError(
                f"training is unstable: at step {step} {reason}, after {self.num_rollbacks} "
                "rollbacks (stability.max_rollbacks); lower recipe.peak_lr or check the data"
            )
        self._roll_back(trainer, module)

    def _roll_back(self, trainer: lightning.Trainer, module: LanguageModule) -> None:
        assert self.snapshot is not None
        module.model.load_state_dict(self.snapshot["model"])
        trainer.optimizers[0].load_state_dict(_copy_to_cpu(self.snapshot["optimizer"]))
        torch.set_rng_state(self.snapshot["rng"])
        self.num_rollbacks += 1
        self.last_cut_step = trainer.global_step
        self._record(
            trainer.global_step, "rollback", f"to the state of step {self.snapshot['step']}"
        )
        self._record(trainer.global_step, "lr_cut", f"learning rate times {self.config.lr_factor}")

    def _lr_factor(self, step: int) -> float:
        if self.last_cut_step is None:
            return 1.0
        recovered = min(1.0, (step - self.last_cut_step) / self.config.recovery_steps)
        return self.config.lr_factor + (1 - self.config.lr_factor) * recovered

    def _record(self, step: int, kind: str, detail: str) -> None:
        self.events.append({"step": step, "kind": kind, "detail": detail})
        self.alert(f"{kind} at step {step}", detail)

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self.detector.losses),
            "events": self.events,
            "num_rollbacks": self.num_rollbacks,
            "last_cut_step": self.last_cut_step,
            "snapshot": self.snapshot,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.detector.losses.extend(state_dict["losses"])
        self.events = state_dict["events"]
        self.num_rollbacks = state_dict["num_rollbacks"]
        self.last_cut_step = state_dict["last_cut_step"]
        self.snapshot = state_dict["snapshot"]


def _state(trainer: lightning.Trainer, module: LanguageModule) -> dict[str, Any]:
    return {
        "model": module.model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "rng": torch.get_rng_state(),
        "step": trainer.global_step,
    }


def _copy_to_cpu(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy_to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copy_to_cpu(value) for value in state)
    return state
