"""The teacher's predictions on the windows that an evolution will see, kept on disk.

They are computed once, by the stage `teach`, and read by every arm and phase. Row n of the arrays
is the n-th window that the evolution draws; a window that was not kept is asked of the teacher
again. Axes: N windows, T tokens, K likeliest tokens.
"""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from trilith.evolution import TopPredictions, top_predictions
from trilith.files import read_json, replacing, require, write_json
from trilith.model import Transformer
from trilith.training.batches import TokenWindows
from trilith.training.room import Need, require_room

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
# Windows that pass through the teacher at once.
_BATCH_SIZE = 4


@dataclass(frozen=True)
class TaughtBy:
    """What predictions depend on: other values are other predictions.

    Attributes:
        teacher: SHA-256 of each file of the teacher's weights.
        tokens: SHA-256 of the manifest of the token shards.
        context: tokens of a window.
        seed: draws the order of the windows.
        top_k: predictions kept of each token; 0 where none are kept.
    """

    teacher: dict[str, str]
    tokens: str
    context: int
    seed: int
    top_k: int


@torch.no_grad()
def teach(
    teacher: Transformer,
    windows: TokenWindows,
    *,
    num_windows: int,
    origin: TaughtBy,
    out_dir: Path,
) -> dict[str, Any]:
    """Write the teacher's predictions on the first windows; return flat metrics.

    Windows are counted once: in later epochs they come again. Nothing is in place before all is.

    Args:
        teacher: on any device.
        windows: in the order in which the evolution draws them.
        num_windows: how many of them it draws; of none there is no `teacher/kept_probability`.
        origin: what the predictions depend on.
        out_dir: replaced as a whole.

    Raises:
        ValueError: the disk has no room for them.
    """
    num_windows = min(num_windows, windows.num_windows)
    shape = (num_windows, windows.context, origin.top_k)
    id_dtype = np.dtype(_id_dtype(teacher.config.vocab_size))
    num_bytes = math.prod(shape) * (id_dtype.itemsize + np.dtype(np.float16).itemsize)
    require_room([Need(out_dir, num_bytes)])
    mass = 0.0
    with replacing(out_dir) as partial:
        partial.mkdir()
        ids = _create(partial / "ids.npy", id_dtype, shape)
        log_probs = _create(partial / "log_probs.npy", np.float16, shape)
        starts = range(0, num_windows, _BATCH_SIZE)
        for start in tqdm(starts, desc="teach", unit="batch", disable=None):
            own = slice(start, min(start + _BATCH_SIZE, num_windows))
            kept = _ask(teacher, windows, own, top_k=origin.top_k)
            ids[own] = kept.ids_BTK.cpu().numpy()
            log_probs[own] = kept.log_probs_BTK.cpu().numpy()
            mass += float(kept.log_probs_BTK.exp().sum(-1).mean(-1).sum())
        ids.flush()
        log_probs.flush()
        write_json(partial / _MANIFEST, {"num_windows": num_windows, "origin": asdict(origin)})
    metrics: dict[str, Any] = {
        "teacher/num_windows": num_windows,
        "teacher/top_k": origin.top_k,
        "teacher/file_bytes": sum(path.stat().st_size for path in Path(out_dir).iterdir()),
    }
    if num_windows:
        metrics["teacher/kept_probability"] = mass / num_windows
    return metrics


class TeacherCache:
    """The predictions that `teach` wrote, mapped from disk."""

    def __init__(self, folder: Path, windows: TokenWindows) -> None:
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._log_probs = np.load(folder / "log_probs.npy", mmap_mode="r")
        self._row_of_place = {windows.place(row): row for row in range(len(self._ids))}
        self._windows = windows

    @classmethod
    def load(cls, folder: Path, windows: TokenWindows, *, origin: TaughtBy) -> Self:
        """Open the predictions.

        Args:
            folder: as `teach` wrote it.
            windows: in the order in which the evolution draws them.
            origin: what the evolution would depend on.

        Raises:
            FileNotFoundError: there are none.
            ValueError: they are of another teacher, other tokens or another order, or damaged.
        """
        manifest = read_json(folder / _MANIFEST, made_by="teach")
        wanted = asdict(origin)
        found = manifest.get("origin", {})
        for key in wanted:
            if found.get(key) != wanted[key]:
                raise ValueError(
                    f"{folder} holds predictions for {key}={found.get(key)} and the evolution "
                    f"needs {key}={wanted[key]}; run the stage teach again"
                )
        for name in ("ids.npy", "log_probs.npy"):
            require(folder / name, made_by="teach")
        cache = cls(folder, windows)
        shape = (manifest["num_windows"], origin.context, origin.top_k)
        if cache._ids.shape != shape or cache._log_probs.shape != shape:
            raise ValueError(f"{folder} is damaged; run the stage teach again")
        return cache

    def predictions(self, position: int) -> TopPredictions | None:
        """Return those for the batch of windows at a position; None if one was not kept."""
        first = position * self._windows.batch_size
        places = [self._windows.place(first + n) for n in range(self._windows.batch_size)]
        rows = [self._row_of_place.get(place) for place in places]
        if None in rows:
            return None
        return TopPredictions(
            torch.from_numpy(self._ids[rows].astype(np.int64)),
            torch.from_numpy(self._log_probs[rows].astype(np.float32)),
        )


def _ask(teacher: Transformer, windows: TokenWindows, rows: slice, *, top_k: int) -> TopPredictions:
    inputs_BT = windows.rows(range(rows.start, rows.stop)).inputs_BT
    device = next(teacher.parameters()).device
    return top_predictions(teacher(inputs_BT.to(device)), top_k=top_k)


def _create(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _id_dtype(vocab_size: int) -> Any:
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.uint32
