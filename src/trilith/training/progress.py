"""One progress bar a run: steps, time left, losses and speed."""

from typing import Any

import lightning
from tqdm import tqdm

from trilith.training.curves import CurveRecorder
from trilith.training.module import ends_step


class StepBar(lightning.Callback):
    """A bar over optimizer steps; it goes on from the step where a resumed run starts."""

    def __init__(self, name: str, curves: CurveRecorder) -> None:
        self.name = name
        self.curves = curves
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        # None: no bar where nobody watches, as in logs.
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=self.name,
            unit="step",
            disable=None if trainer.is_global_zero else True,
        )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self.bar is not None
        if self.bar.disable or not ends_step(trainer, batch_idx):
            return
        # The newest complete row, not the module's loss: reading that would wait for the device.
        shown = {}
        if self.curves.steps:
            shown["loss"] = f"{self.curves.steps[-1]['loss_nats']:.3f}"
        if "validation/loss_nats" in trainer.callback_metrics:
            shown["validation"] = f"{float(trainer.callback_metrics['validation/loss_nats']):.3f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def teardown(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str
    ) -> None:
        if self.bar is not None:
            self.bar.close()
