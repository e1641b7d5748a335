"""What every stage shares: its configuration, errors, lock, and the files beside its output.

A stage is a plain Hydra program. DVC runs it on reports/config.yaml; by hand it composes conf/ with
the choices of params.yaml, and writes below runs/.
"""

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from root import ROOT

# Threads that spin while they wait are a little faster alone, and ten times slower as soon as
# another process wants a core. Read when torch's OpenMP runtime is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import filelock
import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sections import build, build_seed
from trilith.files import is_disk_full, is_first_process, write_json

log = logging.getLogger("trilith.pipelines")

# A place that the user named cannot be read or written as it is.
_UNUSABLE = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_VERSIONED = ("torch", "lightning", "hydra-core", "dvc", "wandb", "sentencepiece", "safetensors")


class Stage:
    """One run of a stage: typed sections of its configuration, its inputs and outputs.

    Training on several devices runs the stage once for each; `is_first` is the one that writes.
    `facts` is what the stage itself adds to its run.json.
    """

    def __init__(self, name: str, config: DictConfig) -> None:
        self.name = name
        self.is_first = is_first_process()
        self.config: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        self.out_dir = Path(build(str, self.config["out_dir"], key="out_dir"))
        self.metrics_dir = Path(build(str, self.config["metrics_dir"], key="metrics_dir"))
        self.seed = build_seed(self.config["seed"])
        self.facts: dict[str, Any] = {}

    def section(self, key: str, kind: Any) -> Any:
        """Return the section `key` (dots go deeper) as its dataclass."""
        content: Any = self.config
        for part in key.split("."):
            content = content[part]
        return build(kind, content, key=key)

    def input(self, name: str) -> Path:
        """Return where an input comes from."""
        return Path(self.config["inputs"][name])

    def key(self, *parts: Any) -> str:
        """Return a name for the work that depends on these values alone, and on this stage."""
        text = json.dumps([self.name, *parts], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        if self.is_first:
            write_json(self.metrics_dir / "metrics.json", metrics)


def run(name: str, main: Callable[[Stage], None]) -> None:
    """Run a stage as a Hydra program; turn what users can mend into one clear line."""
    with _explained(name):
        _insert_overrides([f"hydra.job.name={name}", *_choices(sys.argv[1:])])
        if not is_first_process():
            # No files of Hydra's either; a folder it must have.
            sys.argv += [
                "hydra.run.dir=runs/others",
                "hydra.sweep.dir=runs/others",
                "hydra.output_subdir=null",
                "hydra/job_logging=none",
            ]
    # Hydra would cut tracebacks short and exit by itself; errors are told apart below.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def program(config: DictConfig) -> None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter("%(message)s"))
        started = time.perf_counter()
        with _explained(name):
            stage = Stage(name, config)
            if not stage.is_first:
                logging.disable(logging.WARNING)
                main(stage)
                return
            with locked(stage.out_dir):
                main(stage)
                _write_run_file(stage, time.perf_counter() - started)

    # Hydra takes config paths relative to this file only if the program is the main module's.
    program.__module__ = "__main__"
    with _explained(name):
        hydra.main(version_base="1.3", config_path="../conf", config_name="config")(program)()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        status, text = explain(error)
        if text is None:
            raise
        log.debug("where it was raised", exc_info=True)
        print(f"{name}: {text}", file=sys.stderr)
        sys.exit(status)


def explain(error: BaseException) -> tuple[int, str | None]:
    """Return the exit status and, for what a user can mend, what to say; None for our mistakes."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C; nothing half-written stays, the same command goes on"
    if is_disk_full(error):
        return 1, f"error: the disk is full ({error}); free some space and run it again"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return 1, f"error: {error}\n(conf/ and params.yaml hold the options)"
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return 1, f"error: {error}; give another place, or make this one usable"
    if isinstance(error, ValueError | FileNotFoundError):
        return 1, f"error: {error}"
    return 1, None


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Refuse to run beside another process that writes to the same place.

    A killed `dvc repro` leaves its stage running; without the lock the next one would join it.

    Raises:
        ValueError: another process holds the place.
    """
    name = hashlib.sha256(str(place.absolute()).encode()).hexdigest()[:16]
    folder = Path("runs/locks")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{name}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"another process is writing to {place}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _write_run_file(stage: Stage, wall_s: float) -> None:
    content = {
        "stage": stage.name,
        "seed": stage.seed,
        "threads": stage.config["hardware"]["threads"],
        "device": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
        **stage.facts,
        "wall_s": round(wall_s, 1),
    }
    write_json(stage.metrics_dir / "run.json", content)


def load_choices(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read params.yaml: the choice of each group, and the overrides.

    Raises:
        ValueError: the file is not what it should be.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}); mend it") from None
    overrides = content.pop("overrides", None) if isinstance(content, dict) else None
    if not isinstance(overrides, list):
        raise ValueError(f"{path} must map choices to values and hold a list `overrides`")
    return content, [str(override) for override in overrides]


def _choices(arguments: list[str]) -> list[str]:
    """Return the choices and overrides of params.yaml for the keys that the arguments lack."""
    if any(a.startswith(("--config", "-cn", "-cp", "-cd")) for a in arguments):
        return []
    choices, overrides = load_choices(ROOT / "params.yaml")
    given = {argument.lstrip("+~").split("=")[0] for argument in arguments}
    missing = [f"{key}={value}" for key, value in choices.items() if key not in given]
    return missing + [override for override in overrides if override.split("=")[0] not in given]


def _insert_overrides(overrides: list[str]) -> None:
    """Put overrides in front of those of the command line; argparse wants all of them together."""
    places = [place for place, a in enumerate(sys.argv[1:], 1) if "=" in a and a[0] != "-"]
    place = min(places, default=len(sys.argv))
    sys.argv[place:place] = overrides
