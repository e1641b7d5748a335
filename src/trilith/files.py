"""Writing that is whole or absent, hashing, and the plain files between the stages."""

import csv
import errno
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Seconds of one optimizer step by what they went into, summed over its micro-batches.
STEP_PARTS = ("data_s", "forward_s", "backward_s", "optimizer_s")
# Columns of the curves that a training run writes and the report reads.
STEP_COLUMNS = (
    "step",
    "tokens",
    "loss_nats",
    "kl_nats",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "mfu",
    "step_s",
    *STEP_PARTS,
    "memory_bytes",
    "zero_share",
    "flip_rate",
)
VALIDATION_COLUMNS = ("step", "tokens", "loss_nats")
EVENT_COLUMNS = ("step", "kind", "detail")
# `flip_rate` compares codes with those of this many optimizer steps before.
FLIP_INTERVAL = 10


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a path beside `path`; rename it to `path` only if the block ends without an error.

    The block creates a file or a folder there. A reader therefore sees the old content, nothing,
    or the whole new content, never a part; after an error or Ctrl-C nothing stays behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_partials_of_the_dead(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    remove(partial)
    try:
        yield partial
        if partial.is_file():
            _flush_to_disk(partial)
        if path.is_dir():
            remove(path)
        partial.replace(path)
    finally:
        remove(partial)


def is_first_process() -> bool:
    """True in the one process of a run that writes; there are more when it trains on many devices.

    Whoever starts the others, torchrun, srun or Lightning, numbers them in the environment.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(name, 0)) for name in names)


def remove(path: Path) -> None:
    """Remove a file or a whole folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all. NaN and infinity are errors."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Write rows as CSV with a header; a value that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as partial:
        partial.write_text(text.getvalue())


def read_json(path: Path, *, made_by: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        made_by: the stage or command that writes it, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON.
    """
    path = require(path, made_by=made_by)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged (not JSON: {error}); delete it and run {made_by}"
        ) from None


def require(path: Path, *, made_by: str) -> Path:
    """Return `path` if it exists; otherwise say which stage or command makes it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {made_by} makes it: run that first")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """True if the error says that there is no room: full disk, quota or file size limit.

    Libraries wrap the system's error, torch even drops it, so the text decides where no code does.
    """
    codes = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    texts = [os.strerror(code) for code in codes] + ["PytorchStreamWriter failed writing"]
    if getattr(error, "errno", None) in codes:
        return True
    return any(text in str(error) for text in texts)


def _remove_partials_of_the_dead(path: Path) -> None:
    """Remove what processes left behind that were killed while they wrote `path`."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        pid = partial.name.rpartition("-")[2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            remove(partial)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
