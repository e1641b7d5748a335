"""What the two training stages share: the place of a run, with its resume state and its history."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stage import Stage, locked
from trilith.hardware import HardwareConfig, find_peak, prepare_cpu
from trilith.training.fit import RunPlace
from trilith.training.tracking import TrackingConfig, start_run


@contextmanager
def open_place(stage: Stage, name: str, *, depends_on: list[Any]) -> Iterator[RunPlace]:
    """Prepare the machine, open the W&B run and hold the resume folder of this very work.

    Args:
        stage: the stage.
        name: of the run.
        depends_on: configuration sections and hashes; another value is another run.

    Raises:
        ValueError: another process is at the same work.
    """
    hardware = stage.section("hardware", HardwareConfig)
    prepare_cpu(hardware.threads)
    key = stage.key(name, stage.seed, hardware.threads, *depends_on)
    resume_dir = Path("runs/resume") / key
    tracking = stage.section("tracking", TrackingConfig)
    peak = find_peak(hardware)
    stage.facts["peak"] = peak.name
    with locked(resume_dir):
        history = start_run(tracking, name=name, run_id=f"{name}-{key}", settings=stage.config)
        yield RunPlace(
            name=name,
            resume_dir=resume_dir,
            metrics_dir=stage.metrics_dir,
            wandb_run=history,
            peak_flops=peak.flops,
            seed=stage.seed,
        )
        history.finish()
