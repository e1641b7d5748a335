"""What the two training stages share: the place of a run, with its resume state and its history."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stage import Stage, locked
from trilith.hardware import HardwareConfig, Peak, find_peak, prepare_cpu
from trilith.training.devices import TrainerConfig, require_devices
from trilith.training.fit import RunPlace, TrainConfig
from trilith.training.tracking import TrackingConfig, start_run


@contextmanager
def open_place(stage: Stage, name: str, *, depends_on: list[Any]) -> Iterator[RunPlace]:
    """Prepare the machine, open the W&B run and hold the resume folder of this very work.

    Of several processes the first alone holds, tracks and measures. Another number of them that
    takes as many batches a step is the same work, and goes on where the others were stopped.

    Args:
        stage: the stage.
        name: of the run.
        depends_on: configuration sections and hashes, beside the sections train and trainer;
            another value is another run.

    Raises:
        ValueError: another process is at the same work, or the devices are not there.
    """
    hardware = stage.section("hardware", HardwareConfig)
    train = stage.section("train", TrainConfig)
    trainer = stage.section("trainer", TrainerConfig)
    tracking = stage.section("tracking", TrackingConfig)
    require_devices(trainer)
    prepare_cpu(hardware.threads)
    step = asdict(train) | {"accumulate": train.accumulate * trainer.world_size}
    is_sharded = trainer.strategy == "fsdp"
    key = stage.key(name, stage.seed, hardware.threads, step, is_sharded, *depends_on)
    resume_dir = Path("runs/resume") / key
    # A matmul is measured alone: the other processes wait for the first one anyway.
    is_bfloat16 = train.precision == "bf16-mixed"
    peak = find_peak(hardware, is_bfloat16=is_bfloat16) if stage.is_first else Peak(math.nan, "")
    stage.facts["peak"] = peak.name
    if not stage.is_first:
        tracking = replace(tracking, mode="disabled")
    with locked(resume_dir) if stage.is_first else nullcontext():
        history = start_run(tracking, name=name, run_id=f"{name}-{key}", settings=stage.config)
        yield RunPlace(
            name=name,
            resume_dir=resume_dir,
            metrics_dir=stage.metrics_dir,
            wandb_run=history,
            peak_flops=peak.flops,
            seed=stage.seed,
            trainer=trainer,
        )
        history.finish()
