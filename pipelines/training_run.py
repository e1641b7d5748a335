"""What the two training stages share: the place of a run, with its resume state and its history."""

from pathlib import Path
from typing import Any

from stage import Stage
from trilith.hardware import HardwareConfig, peak_flops, prepare_cpu
from trilith.training.fit import RunPlace
from trilith.training.tracking import TrackingConfig, start_run


def open_place(stage: Stage, name: str, *, depends_on: list[Any]) -> RunPlace:
    """Prepare the machine, open the W&B run and find the resume folder of this very work.

    Args:
        stage: the stage.
        name: of the run.
        depends_on: configuration sections and hashes; another value is another run.
    """
    hardware = stage.section("hardware", HardwareConfig)
    prepare_cpu(hardware.threads)
    key = stage.key(name, stage.seed, hardware.threads, *depends_on)
    history = start_run(
        stage.section("tracking", TrackingConfig),
        name=name,
        run_id=f"{name}-{key}",
        settings=stage.config,
    )
    return RunPlace(
        name=name,
        resume_dir=Path("runs/resume") / key,
        metrics_dir=stage.metrics_dir,
        wandb_run=history,
        peak_flops=peak_flops(hardware),
        seed=stage.seed,
    )
