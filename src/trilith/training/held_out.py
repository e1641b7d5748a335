"""Early stop: a phase ends once it no longer gets better on what it has not seen."""

import logging
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.trainer.states import TrainerFn

from trilith.model import Transformer
from trilith.training.module import LanguageModule

log = logging.getLogger(__name__)


class HeldOutStop(lightning.Callback):
    """Stops after `patience` validations in a row without a lower held-out loss.

    That loss is the mean of those of text and of answers, in nats, where there are held-out
    answers, else that of text. While layers still move to their grid nothing counts.

    A run that goes on from the state of where it was stopped stays there.

    Args:
        patience: number of validations; None never stops.
        answer_loss: measures the loss on held-out answers; None for none.
    """

    def __init__(
        self, patience: int | None, answer_loss: Callable[[Transformer], float | None]
    ) -> None:
        self.patience = patience
        self.answer_loss = answer_loss
        self.best_nats: float | None = None
        self.num_waited = 0
        self.stopped_step: int | None = None

    def on_validation_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        assert isinstance(module, LanguageModule)
        if self.patience is None or trainer.state.fn != TrainerFn.FITTING:
            return
        nats = float(trainer.callback_metrics["validation/loss_nats"])
        answers = self.answer_loss(module.model)
        if answers is not None:
            nats = (nats + answers) / 2
        module.log_now({"validation/held_out_nats": nats})
        if not module.is_on_grid:
            return
        if self.best_nats is None or nats < self.best_nats:
            self.best_nats, self.num_waited = nats, 0
            return
        self.num_waited += 1
        if self.num_waited >= self.patience:
            self.stopped_step = trainer.global_step
            trainer.should_stop = True
            log.info(
                "%s validations without a lower held-out loss than %.3f nats: stopped at step %d",
                self.num_waited,
                self.best_nats,
                self.stopped_step,
            )

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.stopped_step is not None:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_nats": self.best_nats,
            "num_waited": self.num_waited,
            "stopped_step": self.stopped_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_nats = state_dict["best_nats"]
        self.num_waited = state_dict["num_waited"]
        self.stopped_step = state_dict["stopped_step"]
