"""Resume: the state of an unfinished run, saved often, found again by the same command."""

import logging
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from trilith.files import remove, replacing
from trilith.training.module import LanguageModule, ends_step

log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The validation with the lowest loss so far."""

    step: int
    loss_nats: float


class ResumeCallback(lightning.Callback):
    """Saves the whole state every `every` steps, and the weights of the best validation.

    The last `keep_last` states are kept. Where a step is validated as well, every
    `validate_every`, that comes first: a run that goes on from a state saved in between would never
    make up for the validation. A dense phase of a model on a grid has no best: it is no result.
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
        was_dense = module.recipe.is_dense(step - 1, module.num_steps)
        if is_best and math.isfinite(loss_nats) and not was_dense:
            self.best = Best(step, loss_nats)
            self._save_best(trainer, self.best)
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_if_due(trainer)

    def load_best(self, module: LanguageModule) -> Best | None:
        """Give the module the weights of the best validation and say which; None if they are lost.

        A damaged file is a warning, and the module keeps its weights.
        """
        if self.best is None:
            log.warning("no validation was a best one; the result is the last step's weights")
            return None
        path = _best_path(self.folder, self.best)
        state = _load_or_warn(path, instead="the result is the last step's weights")
        if state is None:
            return None
        module.load_state_dict(state["state_dict"])
        return self.best

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else tuple(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self.best = None if best is None else Best(*best)

    def _save_if_due(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        with replacing(self.folder / f"step-{trainer.global_step:08d}.ckpt") as partial:
            trainer.save_checkpoint(partial)
        for old in checkpoints(self.folder)[: -self.keep_last]:
            remove(old)

    def _save_best(self, trainer: lightning.Trainer, best: Best) -> None:
        path = _best_path(self.folder, best)
        with replacing(path) as partial:
            trainer.save_checkpoint(partial, weights_only=True)
        for other in self.folder.glob("best-*.ckpt"):
            if other != path:
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
        if _load_or_warn(path, instead="going back to the one before") is not None:
            return path
        remove(path)
    return None


def _best_path(folder: Path, best: Best) -> Path:
    return folder / f"best-{best.step:08d}.ckpt"


def _load_or_warn(path: Path, *, instead: str) -> dict[str, Any] | None:
    try:
        # torch does not look at the checksums of the archive: it would take flipped bits for good.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, weights_only=False, map_location="cpu")
    except Exception as error:
        log.warning("%s is damaged (%s); %s", path, error, instead)
        return None
