"""What every stage shares: its configuration, errors, lock, and the files beside its output.

A stage is a plain Hydra program. DVC runs it on reports/config.yaml; by hand it composes conf/ with
the choices of params.yaml, and writes below runs/.
"""

import hashlib
import importlib.metadata
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# `dvc exp run --temp` copies the tree: a stage must import the package it was copied with.
sys.path.insert(0, str(ROOT / "src"))

import filelock  # noqa: E402
import hydra  # noqa: E402
import yaml  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from sections import build  # noqa: E402
from trilith.files import is_disk_full, write_json  # noqa: E402

log = logging.getLogger("trilith.pipelines")

_VERSIONED = ("torch", "lightning", "hydra-core", "dvc", "wandb", "sentencepiece", "safetensors")


class Stage:
    """One run of a stage: typed sections of its configuration, its inputs and outputs."""

    def __init__(self, name: str, config: DictConfig) -> None:
        self.name = name
        self.config: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        self.out_dir = Path(self.config["out_dir"])
        self.metrics_dir = Path(self.config["metrics_dir"])
        self.seed: int = self.config["seed"]

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
        write_json(self.metrics_dir / "metrics.json", metrics)


def run(name: str, main: Callable[[Stage], None]) -> None:
    """Run a stage as a Hydra program; turn what users can mend into one clear line."""
    _insert_choices()
    sys.argv.append(f"hydra.job.name={name}")

    def program(config: DictConfig) -> None:
        status = _guarded(name, main, config)
        if status:
            sys.exit(status)

    # Hydra takes config paths relative to this file only if the program is the main module's.
    program.__module__ = "__main__"
    hydra.main(version_base="1.3", config_path="../conf", config_name="config")(program)()


def _guarded(name: str, main: Callable[[Stage], None], config: DictConfig) -> int:
    started = time.perf_counter()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
    try:
        stage = Stage(name, config)
        with _locked(stage.out_dir):
            main(stage)
            _write_run_file(stage, time.perf_counter() - started)
    except KeyboardInterrupt:
        log.error(
            "%s: stopped by Ctrl-C; nothing half-written stays, the same command goes on", name
        )
        return 130
    except filelock.Timeout:
        out_dir = config["out_dir"]
        log.error("%s: error: another process is writing %s; wait for it or stop it", name, out_dir)
        return 1
    except (ValueError, FileNotFoundError, PermissionError) as error:
        log.error("%s: error: %s", name, error)
        log.debug("where it was raised", exc_info=True)
        return 1
    except Exception as error:
        if not is_disk_full(error):
            raise
        log.error("%s: error: the disk is full (%s); free some space and run it again", name, error)
        return 1
    return 0


def _locked(out_dir: Path) -> filelock.FileLock:
    """Refuse to run beside another process that writes the same output.

    A killed `dvc repro` leaves its stage running; without the lock the next one would join it.
    """
    name = hashlib.sha256(str(out_dir.absolute()).encode()).hexdigest()[:16]
    folder = Path("runs/locks")
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f"{name}.lock", timeout=0)


def _write_run_file(stage: Stage, wall_s: float) -> None:
    content = {
        "stage": stage.name,
        "seed": stage.seed,
        "threads": stage.config["hardware"]["threads"],
        "device": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
        "wall_s": round(wall_s, 1),
    }
    write_json(stage.metrics_dir / "run.json", content)


def load_choices(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read params.yaml: the choice of each group, and the overrides.

    Raises:
        ValueError: the file is not what it should be.
    """
    content = yaml.safe_load(path.read_text())
    overrides = content.pop("overrides", None) if isinstance(content, dict) else None
    if not isinstance(overrides, list):
        raise ValueError(f"{path} must map choices to values and hold a list `overrides`")
    return content, [str(override) for override in overrides]


def _insert_choices() -> None:
    """Put the choices of params.yaml in front of the command line, for the keys not given there."""
    arguments = sys.argv[1:]
    if any(a.startswith(("--config", "-cn", "-cp", "-cd")) for a in arguments):
        return
    choices, overrides = load_choices(ROOT / "params.yaml")
    given = {argument.lstrip("+~").split("=")[0] for argument in arguments}
    missing = [f"{key}={value}" for key, value in choices.items() if key not in given]
    kept = [override for override in overrides if override.split("=")[0] not in given]
    sys.argv[1:] = [*missing, *kept, *arguments]
