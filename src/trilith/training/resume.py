"""Resume: the state of an unfinished run, saved often, found again by the same command.

The state is one file, or with sharded weights a folder to which each process writes its share.
Either can be read by another number of processes that takes as many batches a step.
"""

import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.distributed.checkpoint import FileSystemReader

from trilith.files import is_first_process, remove, replacing
from trilith.training.module import ends_step

log = logging.getLogger(__name__)

NUM_KEPT = 2
# What Lightning writes beside the shares of a sharded state: all but weights and optimizer.
_SHARED_FILE = "meta.pt"


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

    def on_load_checkpoint(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Count in batches of this run what Lightning counted in those of the saved one."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        num_done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        shift = num_done - progress["current"]["ready"]
        for counts in (progress["total"], progress["current"]):
            for key in counts:
                counts[key] += shift

    def _save_if_due(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        if not trainer.is_global_zero:
            # The first process says where, and renames once all have written.
            trainer.save_checkpoint(path)
            return
        with replacing(path) as partial:
            trainer.save_checkpoint(partial)
        for old in checkpoints(self.folder)[:-NUM_KEPT]:
            remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the folder, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that can be read; warn of a damaged one and remove it."""
    for path in reversed(checkpoints(folder)):
        try:
            _read(path)
        except Exception as error:
            if is_first_process():
                log.warning("%s is damaged (%s); going back to the one before", path, error)
                remove(path)
            continue
        return path
    return None


def _read(path: Path) -> None:
    """Raise an error unless the checkpoint is whole; shares are not read, only measured."""
    if path.is_file():
        torch.load(path, weights_only=False, map_location="cpu")
        return
    torch.load(path / _SHARED_FILE, weights_only=False, map_location="cpu")
    for share in FileSystemReader(path).read_metadata().storage_data.values():
        num_bytes = (path / share.relative_path).stat().st_size
        if num_bytes < share.offset + share.length:
            raise ValueError(f"{share.relative_path} ends after {num_bytes} bytes")
