"""Looking at a folder from outside while stages work in it."""

import time
from collections.abc import Callable
from pathlib import Path

# Where a stage keeps what is no output: locks, resume state, logs of Hydra, what tests print.
_APART = {"runs", "printed"}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a project, hidden ones too, but for runs and printed text."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in _APART
    }


def wait_until(condition: Callable[[], object], *, timeout_s: float = 60) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
