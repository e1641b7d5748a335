"""Faults: seen within a step, undone by a rollback in the same process, answered by a lower LR."""

from collections import deque
from collections.abc import Callable
from typing import Any

import lightning
import torch

from trilith.training.detector import (
    SIGNALS,
    Detector,
    Fault,
    StabilityConfig,
    diagnosis,
)
from trilith.training.module import LanguageModule, ends_step, starts_step
from trilith.training.signals import Codes, Reading, WeightWatch
from trilith.training.snapshot import Snapshot, restore, take_snapshot

# Of the way to the grid; in smaller steps the loss moves no more than its noise.
_LEAP = 0.1


class StabilityCallback(lightning.Callback):
    """Keeps a good snapshot on the CPU; after a fault restores it and skips the bad batches.

    Weights, optimizer, random generators and the position in the recipe go back; the data go on,
    so what was read since the snapshot is not read again, and the run gets the lost steps back at
    its end. On a GPU the signals of a step are checked one step later, so that the host never
    waits; a snapshot counts as good once the step before it has been checked.

    `alert` gets a title and a text for every event. Events, windows and snapshots survive a resume;
    where weights are sharded each process has but its part of a snapshot, and a new one is taken.
    """

    def __init__(self, config: StabilityConfig, alert: Callable[[str, str], None]) -> None:
        self.config = config
        self.alert = alert
        self.detector = Detector(config)
        self.events: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.num_rollbacks = 0
        self.num_lost_steps = 0
        self.last_cut_step: int | None = None
        self.snapshot: Snapshot | None = None
        self._candidate: Snapshot | None = None
        self._unchecked: deque[Reading] = deque()
        self._watch: WeightWatch | None = None
        self._codes: Codes | None = None

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
        module.num_lost_steps = self.num_lost_steps
        module.lr_factor = self._lr_factor(trainer.global_step)
        if _leaps_to_grid(module):
            # The loss jumps when weights go on the grid at once: what was before says nothing.
            self.detector.forget()
            self._forget_codes()
        if self._watch is None:
            self._watch = WeightWatch(module.model, codes=self._codes)
            if self._watch.is_sharded:
                # An earlier process may have held the whole weights.
                self.snapshot = self._candidate = None
        self._watch.arm()
        if trainer.global_step % self.config.snapshot_every == 0 or self.snapshot is None:
            self._candidate = take_snapshot(
                module.model,
                trainer.optimizers[0],
                step=trainer.global_step,
                recipe_step=module.recipe_step,
                windows=self.detector.state_dict(),
            )
            # After the resume of a sharded run there is none to keep until this one is checked.
            is_good = not self._unchecked or self.snapshot is None
            self._accept_candidate(trainer.global_step if is_good else 0)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: Any
    ) -> None:
        assert self._watch is not None and isinstance(module, LanguageModule)
        if _leaves_dense(module):
            # Learned scales, which are weights, were fitted at the start of this step.
            self._watch.disarm()
            self._watch.arm()
        self._watch.look()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, LanguageModule) and self._watch is not None
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        reading = self._watch.read(
            step,
            loss_nats=module.loss_nats,
            grad_norm=module.grad_norm,
            lr_factor=module.lr_factor,
            with_grid=step % self.config.grid_every == 0,
        )
        self._unchecked.append(reading)
        is_last = step >= trainer.max_steps
        while len(self._unchecked) > (0 if is_last else check_delay(module.device)):
            oldest = self._unchecked.popleft()
            fault = self.detector.check(oldest.step, *oldest.signals())
            if fault is not None:
                self._answer(fault, trainer, module)
                return
            self._accept_candidate(oldest.step)

    def num_events(self) -> dict[str, int]:
        """Count spikes, rollbacks and stops, and the spikes by their signal."""
        kinds = {
            f"num_{kind}s": sum(event["kind"] == kind for event in self.events)
            for kind in ("spike", "rollback", "stop")
        }
        return kinds | {
            f"num_{signal}": sum(fault.signal == signal for fault in self.faults)
            for signal in SIGNALS
        }

    def on_load_checkpoint(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        # Before Lightning asks whether the run is over: lost steps have made it longer.
        lost = checkpoint["callbacks"][self.state_key]["num_lost_steps"]
        _lengthen(trainer, module, num_lost_steps=lost)

    def state_dict(self) -> dict[str, Any]:
        is_whole = self._watch is None or not self._watch.is_sharded
        return {
            "detector": self.detector.state_dict(),
            "events": self.events,
            "faults": [tuple(fault) for fault in self.faults],
            "num_rollbacks": self.num_rollbacks,
            "num_lost_steps": self.num_lost_steps,
            "last_cut_step": self.last_cut_step,
            "snapshot": self.snapshot if is_whole else None,
            "candidate": self._candidate if is_whole else None,
            "unchecked": [(reading.step, reading.fetch()) for reading in self._unchecked],
            "codes": self._watch.codes if self._watch is not None and is_whole else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.detector.load_state_dict(state_dict["detector"])
        self.events = state_dict["events"]
        self.faults = [Fault(*fault) for fault in state_dict["faults"]]
        self.num_rollbacks = state_dict["num_rollbacks"]
        self.num_lost_steps = state_dict["num_lost_steps"]
        self.last_cut_step = state_dict["last_cut_step"]
        self.snapshot = state_dict["snapshot"]
        self._candidate = state_dict["candidate"]
        self._unchecked = deque(
            Reading(step, values, None) for step, values in state_dict["unchecked"]
        )
        self._codes = state_dict["codes"]

    def _forget_codes(self) -> None:
        """Codes of another grid, or of fewer layers, say nothing about those to come."""
        self._codes = None
        if self._watch is not None:
            self._watch.codes = None

    def _accept_candidate(self, last_good_step: int) -> None:
        candidate = self._candidate
        if candidate is not None and candidate.step <= last_good_step:
            self.snapshot, self._candidate = candidate, None

    def _answer(self, fault: Fault, trainer: lightning.Trainer, module: LanguageModule) -> None:
        self.faults.append(fault)
        self._record(fault.step, "spike", f"{fault.signal}: {fault.detail}")
        if self.num_rollbacks >= self.config.max_rollbacks:
            told = diagnosis(self.faults)
            self._record(trainer.global_step, "stop", told)
            raise ValueError(
                f"training is unstable: {self.num_rollbacks} rollbacks (stability.max_rollbacks) "
                f"did not help; {told}"
            )
        self._roll_back(trainer, module)

    def _roll_back(self, trainer: lightning.Trainer, module: LanguageModule) -> None:
        assert self.snapshot is not None and self._watch is not None
        step = trainer.global_step
        restore(self.snapshot, module.model, trainer.optimizers[0])
        module.num_lost_steps = step - self.snapshot.recipe_step
        if module.pace is not None:
            # For a validation right after.
            module.pace.place(module.model, step=max(0, module.recipe_step - 1))
        # Early on the loss was higher: what has become usual since would call it a spike.
        self.detector.load_state_dict(self.snapshot.windows)
        self._watch.disarm()
        self._unchecked.clear()
        self._candidate = None
        self.num_rollbacks += 1
        self.num_lost_steps = module.num_lost_steps
        _lengthen(trainer, module, num_lost_steps=self.num_lost_steps)
        self.last_cut_step = step
        self._record(step, "rollback", f"to the state of step {self.snapshot.step}")
        self._record(step, "lr_cut", f"learning rate times {self.config.lr_factor}")

    def _lr_factor(self, step: int) -> float:
        if self.last_cut_step is None:
            return 1.0
        recovered = min(1.0, (step - self.last_cut_step) / self.config.recovery_steps)
        return self.config.lr_factor + (1 - self.config.lr_factor) * recovered

    def _record(self, step: int, kind: str, detail: str) -> None:
        self.events.append({"step": step, "kind": kind, "detail": detail})
        self.alert(f"{kind} at step {step}", detail)


def check_delay(device: torch.device) -> int:
    """Steps between a step and the check of its signals: where none has to be waited for, 0."""
    return 1 if device.type == "cuda" else 0


def _leaps_to_grid(module: LanguageModule) -> bool:
    """True where weights of this step are much nearer to their grid than the last one's."""
    last, now = _shares(module)
    return abs(now - last) > _LEAP or module.moves_layers


def _leaves_dense(module: LanguageModule) -> bool:
    last, now = _shares(module)
    return last == 0 < now or module.moves_layers


def _shares(module: LanguageModule) -> tuple[float, float]:
    """How far weights were on their grid in the last step, and are in this one."""
    step, share = module.recipe_step, module.recipe.quantized_share
    return share(max(0, step - 1), module.num_steps), share(step, module.num_steps)


def _lengthen(
    trainer: lightning.Trainer, module: lightning.LightningModule, *, num_lost_steps: int
) -> None:
    assert isinstance(module, LanguageModule)
    trainer.fit_loop.epoch_loop.max_steps = module.num_steps + num_lost_steps
