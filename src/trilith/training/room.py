"""Room for a run, looked at before it starts: on the disk, and in memory."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from trilith.hardware import OVERHEAD_BYTES, host_memory_bytes
from trilith.training.fit import TrainConfig
from trilith.training.memory import StateBytes, TrainingSetup, plan_training

log = logging.getLogger(__name__)


class Need(NamedTuple):
    """Bytes that a run will write into a folder, which need not exist yet."""

    folder: Path
    num_bytes: int


def require_room(needs: Sequence[Need]) -> None:
    """Refuse to start what the disks cannot hold; folders on one disk count together.

    Raises:
        ValueError: a disk has too little free space; the text says how much is needed and free.
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for together in disks.values():
        needed = sum(need.num_bytes for need in together)
        free = shutil.disk_usage(_existing(together[0].folder)).free
        if needed > free:
            folders = " and ".join(str(need.folder) for need in together)
            raise ValueError(
                f"files in {folders} need {needed:,} bytes and {free:,} are free there; free "
                "some space, or put the folder on a larger disk and a link in its place"
            )


def resume_bytes(state: StateBytes, folder: Path, *, num_steps: int, config: TrainConfig) -> int:
    """Bytes that the resume state of a run takes at most, beside what lies in the folder.

    A save holds weights, optimizer and the snapshot to roll back to; beside the saves lie the
    weights of the best validation. Each is written before the one it replaces is removed.
    """
    each = state.weights + state.optimizer + state.snapshot
    num_saves = min(config.keep_last + 1, num_steps // config.checkpoint_every)
    there = sum(path.stat().st_size for path in folder.glob("*.ckpt") if path.is_file())
    return max(0, each * num_saves + 2 * state.weights - there)


def warn_of_memory(setup: TrainingSetup, *, name: str) -> None:
    """Say so if a run is planned to need more memory than the device has."""
    if setup.device == "cuda":
        room = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        room = host_memory_bytes()
    planned = plan_training(setup).total + OVERHEAD_BYTES[setup.device]
    if planned > room:
        log.warning(
            "%s: planned for %.1f GB of memory where there are %.1f GB; lower "
            "train.micro_batch_size or context, or see what `trilith memory` proposes",
            name,
            planned / 1e9,
            room / 1e9,
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
