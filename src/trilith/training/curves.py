"""The curves of a run: one row a step, one a validation, kept through resumes, logged to W&B."""

from collections import deque
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor

from trilith.files import FLIP_INTERVAL
from trilith.model import Transformer
from trilith.quant import BitLinear
from trilith.training.module import LanguageModule, ends_step
from trilith.training.sharding import whole_blocks
from trilith.training.step_cost import StepClock, StepMarks, memory_bytes

# W&B writes its files every 15 s: what a killed run logged later than that is not in them.
_LOGGED_AGAIN_S = 60.0


class _Pending(NamedTuple):
    """A row whose `readings`, named, and times may still be on their way from the device."""

    row: dict[str, Any]
    names: tuple[str, ...]
    readings: Tensor
    arrived: torch.cuda.Event | None
    marks: StepMarks


class CurveRecorder(lightning.Callback):
    """Records loss, learning rate, gradient norm, speed, cost, zero share and flip rate.

    `zero_share` is the share of projection weights on level zero; `flip_rate` the share of codes
    that changed over the last FLIP_INTERVAL steps. Both are empty while a model is dense, and the
    latter where layers have moved to another grid since.
    MFU counts the tokens of a step by `flops_per_token`; what an evolution computes beside them,
    its answers and its teacher, is left out.

    The trainer must have `clock` as its profiler. On CUDA a row is completed a step later, so that
    recording never waits for the device; rows stay in order, and a saved state holds all of them.
    """

    def __init__(self, *, tokens_per_step: int, flops_per_token: float, peak_flops: float) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.clock = StepClock()
        self.steps: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self._codes: Tensor | None = None
        self._grids: tuple[str, ...] = ()
        self._pending: deque[_Pending] = deque()
        self._logger: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.clock.device = module.device
        self._logger = trainer.logger
        self._log_recent_again()

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
        self._pending.append(self._observe(trainer, module))
        self._complete(num_pending=1 if module.device.type == "cuda" else 0)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._complete(num_pending=0)

    def on_exception(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        self._complete(num_pending=0)

    def on_validation_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        if trainer.sanity_checking:
            return
        loss_nats = float(trainer.callback_metrics["validation/loss_nats"])
        step = trainer.global_step
        self.validations.append(
            {"step": step, "tokens": step * self.tokens_per_step, "loss_nats": loss_nats}
        )

    def _observe(self, trainer: lightning.Trainer, module: LanguageModule) -> _Pending:
        """Note what the host knows of the step that ended; send for what only the device does."""
        marks = self.clock.take()
        row = {
            "step": trainer.global_step,
            "tokens": trainer.global_step * self.tokens_per_step,
            "lr": module.learning_rate,
            "memory_bytes": memory_bytes(module.device),
        }
        signals = {"loss_nats": module.loss_nats, "grad_norm": module.grad_norm}
        if module.kl_nats is not None:
            signals["kl_nats"] = module.kl_nats
        signals |= self._grid_signals(trainer, module)
        on_device = torch.stack([signal.detach().float() for signal in signals.values()])
        # Without waiting: torch copies into pinned memory, and the event tells when it is done.
        readings = on_device.to("cpu", non_blocking=True)
        arrived = None
        if module.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return _Pending(row, tuple(signals), readings, arrived, marks)

    def _complete(self, *, num_pending: int) -> None:
        """Complete and log the oldest rows until this many are left."""
        while len(self._pending) > num_pending:
            pending = self._pending.popleft()
            if pending.arrived is not None:
                pending.arrived.synchronize()
            row = pending.row | dict(zip(pending.names, pending.readings.tolist(), strict=True))
            row |= pending.marks.seconds()
            row["tokens_per_s"] = self.tokens_per_step / row["step_s"]
            row["mfu"] = row["tokens_per_s"] * self.flops_per_token / self.peak_flops
            self.steps.append(row)
            self._log(row)

    def _log_recent_again(self) -> None:
        """Log the last rows of a resumed run once more: the run that logged them was killed."""
        rows = latest_rows(self.steps, seconds=_LOGGED_AGAIN_S)
        if not rows or self._logger is None:
            return
        for row in rows:
            self._log(row)
        for row in self.validations:
            if row["step"] >= rows[0]["step"]:
                named = {"validation/loss_nats": row["loss_nats"]}
                self._logger.log_metrics(named, step=row["step"])

    def _log(self, row: dict[str, Any]) -> None:
        if self._logger is None:
            return
        groups = {"zero_share": "quant", "flip_rate": "quant"}
        named = {f"{groups.get(key, 'train')}/{key}": value for key, value in row.items()}
        self._logger.log_metrics(named, step=row["step"])

    def _grid_signals(
        self, trainer: lightning.Trainer, module: LanguageModule
    ) -> dict[str, Tensor]:
        if trainer.global_step % FLIP_INTERVAL:
            return {}
        on_grid = all_codes(module.model)
        if on_grid is None:
            return {}
        signals = {"zero_share": on_grid.zero_share}
        if self._codes is not None and self._grids == on_grid.grids:
            # A resumed run finds them on the CPU.
            before = self._codes.to(on_grid.codes.device)
            signals["flip_rate"] = (on_grid.codes != before).float().mean()
        self._codes, self._grids = on_grid.codes, on_grid.grids
        return signals

    def state_dict(self) -> dict[str, Any]:
        self._complete(num_pending=0)
        return {
            "steps": self.steps,
            "validations": self.validations,
            "codes": self._codes,
            "grids": self._grids,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
        self.validations = state_dict["validations"]
        self._codes = state_dict["codes"]
        self._grids = state_dict["grids"]


def latest_rows(rows: list[dict[str, Any]], *, seconds: float) -> list[dict[str, Any]]:
    """Return the last rows that took so many seconds together, or all."""
    total_s = 0.0
    for place in reversed(range(len(rows))):
        total_s += rows[place]["step_s"]
        if total_s >= seconds:
            return rows[place:]
    return rows


class Codes(NamedTuple):
    """Codes of all quantized weights in one vector, the share on level zero, grids by layer."""

    codes: Tensor
    zero_share: Tensor  # scalar
    grids: tuple[str, ...]


def all_codes(model: Transformer) -> Codes | None:
    """Return the codes of all layers on a grid; None without such layers."""
    codes, num_zero, grids = [], [], []
    for block in whole_blocks(model):
        for layer in block.modules():
            if not isinstance(layer, BitLinear) or layer.quantized_share == 0:
                continue
            layer_codes = layer.quantized_weight().codes.flatten()
            grid = layer.config.levels
            if 0 in grid.numerators:
                num_zero.append((layer_codes == grid.numerators.index(0)).sum())
            codes.append(layer_codes)
            grids.append(grid.name)
    if not codes:
        return None
    joined = torch.cat(codes)
    total = torch.stack(num_zero).sum() if num_zero else torch.zeros((), device=joined.device)
    return Codes(joined, total / joined.numel(), tuple(grids))
