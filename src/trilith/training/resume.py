"""Resume: the state of an unfinished run, saved often, found again by the same command.

The state is one file, or with sharded weights a folder to which each process writes its share.
Either can be read by another number of processes that takes as many batches a step.
"""

import logging
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed import checkpoint as shares

from trilith.files import is_first_process, remove, replacing
from trilith.training.module import LanguageModule, ends_step

log = logging.getLogger(__name__)

# What Lightning writes beside the shares of a sharded state: all but weights and optimizer.
_SHARED_FILE = "meta.pt"


class Best(NamedTuple):
    """The validation with the lowest loss so far."""

    step: int
    loss_nats: float


class ResumeCallback(lightning.Callback):
    """Saves the whole state every `every` steps, and the weights of the best validation.

    The last `keep_last` states are kept. Where a step is validated as well, every
    `validate_every`, that comes first: a run that goes on from a state saved in between would never
    make up for the validation. Before a model is wholly on its grid nothing is best.
    """

    def __init__(self, folder: Path, *, every: int, validate_every: int, keep_last: int) -> None:
        self.folder = folder
        self.every = every
        self.validate_every = validate_every
        self.keep_last = keep_last
        self.best: Best | None = None

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
        assert isinstance(module, LanguageModule)
        step = trainer.global_step
        loss_nats = float(trainer.callback_metrics["validation/loss_nats"])
        is_best = self.best is None or loss_nats < self.best.loss_nats
        if is_best and module.is_on_grid and math.isfinite(loss_nats):
            self.best = Best(step, loss_nats)
            self._save_best(trainer, self.best)
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_if_due(trainer)

    def load_best(self, module: LanguageModule) -> Best | None:
        """Give the module the weights of the best validation and say which; None if they are lost.

        A damaged file is a warning, and the module keeps its weights.
        """
        instead = "the result is the last step's weights"
        if self.best is None:
            if is_first_process():
                log.warning("no validation gave a finite loss on the grid; %s", instead)
            return None
        path = _best_path(self.folder, self.best)
        if not _is_whole(path, instead=instead):
            return None
        _load_weights(module, path)
        return self.best

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else tuple(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self.best = None if best is None else Best(*best)

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
        _write(trainer, path, weights_only=False)
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[: -self.keep_last]:
                remove(old)

    def _save_best(self, trainer: lightning.Trainer, best: Best) -> None:
        path = _best_path(self.folder, best)
        _write(trainer, path, weights_only=True)
        if trainer.is_global_zero:
            for other in set(self.folder.glob("best-*.ckpt")) - {path}:
                remove(other)


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint where it is told.

    Lightning builds it in memory first and then in the system's folder for temporary files, which
    may be too small for it, and where a killed process leaves it behind.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint to `path`, a local file."""
        assert storage_options is None
        torch.save(checkpoint, path)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of whole states in the folder, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that can be read; warn of a damaged one and remove it."""
    for path in reversed(checkpoints(folder)):
        if _is_whole(path, instead="going back to the one before"):
            return path
        if is_first_process():
            remove(path)
    return None


def _best_path(folder: Path, best: Best) -> Path:
    return folder / f"best-{best.step:08d}.ckpt"


def _write(trainer: lightning.Trainer, path: Path, *, weights_only: bool) -> None:
    if not trainer.is_global_zero:
        # The first process says where, and renames once all have written.
        trainer.save_checkpoint(path, weights_only=weights_only)
        return
    with replacing(path) as partial:
        trainer.save_checkpoint(partial, weights_only=weights_only)


def _load_weights(module: LanguageModule, path: Path) -> None:
    if path.is_file():
        saved = torch.load(path, weights_only=False, map_location="cpu")
    else:
        saved = {"state_dict": module.state_dict()}
        shares.load(saved, checkpoint_id=path)
    module.load_state_dict(saved["state_dict"])


def _is_whole(path: Path, *, instead: str) -> bool:
    """True if the checkpoint can be read; else warn and say what happens instead."""
    try:
        _read_all(path)
    except Exception as error:
        if is_first_process():
            log.warning("%s is damaged (%s); %s", path, error, instead)
        return False
    return True


def _read_all(path: Path) -> None:
    """Raise an error unless the checkpoint is whole; shares are not read, only measured."""
    if path.is_file():
        _read_archive(path)
        return
    _read_archive(path / _SHARED_FILE)
    for share in shares.FileSystemReader(path).read_metadata().storage_data.values():
        num_bytes = (path / share.relative_path).stat().st_size
        if num_bytes < share.offset + share.length:
            raise ValueError(f"{share.relative_path} ends after {num_bytes} bytes")


def _read_archive(path: Path) -> None:
    # torch does not look at the checksums of its archives: it would take flipped bits for good.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    torch.load(path, weights_only=False, map_location="cpu")
