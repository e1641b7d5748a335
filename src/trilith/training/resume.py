"""Resume: the state of an unfinished run, saved often, found again by the same command."""

import logging
from pathlib import Path
from typing import Any

import lightning
import torch

from trilith.files import remove, replacing
from trilith.training.module import ends_step

log = logging.getLogger(__name__)

_NUM_KEPT = 2


class ResumeCallback(lightning.Callback):
    """Saves the whole state every `every` steps.

    Where a step is validated as well, every `validate_every`, that comes first: a run that goes on
    from a state saved in between would never make up for the validation.
    """

    def __init__(self, folder: Path, *, every: int, validate_every: int) -> None:
        self.folder = folder
        self.every = every
        self.validate_every = validate_every

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if ends_step(trainer, batch_idx) and step % self.validate_every:
            self._save_if_due(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        with replacing(self.folder / f"step-{trainer.global_step:08d}.ckpt") as partial:
            trainer.save_checkpoint(partial)
        for old in checkpoints(self.folder)[:-_NUM_KEPT]:
            remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the folder, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that can be read; warn of a damaged one and remove it."""
    for path in reversed(checkpoints(folder)):
        try:
            torch.load(path, weights_only=False, map_location="cpu")
        except Exception as error:
            log.warning("%s is damaged (%s); going back to the one before", path, error)
            remove(path)
            continue
        return path
    return None
