"""Weights & Biases: offline unless asked otherwise, no account, no question."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb

from trilith.files import EVENT_COLUMNS


@dataclass(frozen=True)
class TrackingConfig:
    """Where the history of runs goes: `offline` (files), `online` or `disabled`."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    folder: str

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online", "disabled"):
            raise ValueError(
                f"tracking.mode={self.mode!r} is not known; choose offline, online or disabled"
            )


def start_run(
    config: TrackingConfig, *, name: str, run_id: str, settings: dict[str, Any]
) -> wandb.Run:
    """Open, or continue, the W&B run with this id.

    Args:
        config: mode, project and folder.
        name: shown name of the run.
        run_id: the same for the same work, so that a resumed run goes on in the history.
        settings: the composed configuration.
    """
    Path(config.folder).mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=config.project,
        name=name,
        id=run_id,
        resume="allow" if config.mode == "online" else None,
        mode=config.mode,
        dir=config.folder,
        config=settings,
        settings=wandb.Settings(
            console="off", x_disable_stats=True, silent=True, save_code=False, disable_git=True
        ),
    )
    for name_pattern in ("train/*", "quant/*"):
        run.define_metric(name_pattern, step_metric="train/step")
    run.define_metric("train/loss_nats", summary="min", step_metric="train/step")
    return run


def log_events(run: wandb.Run, events: list[dict[str, Any]]) -> None:
    """Log the events of a run as the table `stability/events`; nothing where nothing happened."""
    if not events:
        return
    rows = [[event[column] for column in EVENT_COLUMNS] for event in events]
    run.log({"stability/events": wandb.Table(columns=list(EVENT_COLUMNS), data=rows)})
