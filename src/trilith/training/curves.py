"""The curves of a run: one row a step, one a validation, kept through resumes, logged to W&B."""

import time
from typing import Any

import lightning
import torch
from torch import Tensor

from trilith.files import FLIP_INTERVAL
from trilith.quant import BitLinear
from trilith.training.module import LanguageModule, ends_step, starts_step


class CurveRecorder(lightning.Callback):
    """Records loss, learning rate, gradient norm, tokens/s, MFU, zero share and flip rate.

    `zero_share` is the share of projection weights on level zero; `flip_rate` the share of codes
    that changed over the last FLIP_INTERVAL steps. Both are empty while a model is dense.
    """

    def __init__(self, *, tokens_per_step: int, flops_per_token: float, peak_flops: float) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.steps: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self._started = 0.0
        self._codes: Tensor | None = None

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if starts_step(trainer, batch_idx):
            self._started = time.perf_counter()

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
        loss_nats = float(module.loss_nats)
        elapsed_s = time.perf_counter() - self._started
        tokens_per_s = self.tokens_per_step / elapsed_s
        row: dict[str, Any] = {
            "step": trainer.global_step,
            "tokens": trainer.global_step * self.tokens_per_step,
            "loss_nats": loss_nats,
            "lr": module.learning_rate,
            "grad_norm": float(module.grad_norm),
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * self.flops_per_token / self.peak_flops,
        }
        row |= self._grid_signals(trainer, module)
        self.steps.append(row)
        if trainer.logger is not None:
            groups = {"zero_share": "quant", "flip_rate": "quant"}
            trainer.logger.log_metrics(
                {f"{groups.get(key, 'train')}/{key}": value for key, value in row.items()},
                step=trainer.global_step,
            )

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

    def _grid_signals(self, trainer: lightning.Trainer, module: LanguageModule) -> dict[str, float]:
        if trainer.global_step % FLIP_INTERVAL:
            return {}
        codes, zero_share = all_codes(module)
        if codes is None:
            return {}
        signals = {"zero_share": zero_share}
        if self._codes is not None:
            signals["flip_rate"] = float((codes != self._codes).float().mean())
        self._codes = codes
        return signals

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "validations": self.validations, "codes": self._codes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
        self.validations = state_dict["validations"]
        self._codes = state_dict["codes"]


def all_codes(module: torch.nn.Module) -> tuple[Tensor | None, float]:
    """Return the codes of all quantized weights in one vector, and the share on level zero."""
    codes, num_zero = [], 0
    for layer in module.modules():
        if isinstance(layer, BitLinear) and layer.quantized_share > 0:
            layer_codes = layer.quantized_weight().codes.flatten()
            grid = layer.config.levels
            if 0 in grid.numerators:
                num_zero += int((layer_codes == grid.numerators.index(0)).sum())
            codes.append(layer_codes)
    if not codes:
        return None, 0.0
    joined = torch.cat(codes)
    return joined, num_zero / joined.numel()
