"""The curves of one training run: read from CSV and checked, smoothed and thinned for drawing."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trilith.files import EVENT_COLUMNS, STEP_COLUMNS, VALIDATION_COLUMNS, require

EVENT_KINDS = ("spike", "rollback", "lr_cut", "stop")

Columns = Mapping[str, np.ndarray]


class Event(NamedTuple):
    """Something that happened to a run at an optimizer step."""

    step: int
    kind: str
    detail: str


class Phase(NamedTuple):
    """A part of a run, from its first to its last optimizer step."""

    name: str
    first_step: float
    last_step: float


@dataclass(frozen=True)
class Run:
    """One training run: final metrics, curves by column name (float64), events in file order."""

    name: str
    metrics: Mapping[str, float]
    steps: Columns
    phases: tuple[Phase, ...]
    validation: Columns
    events: tuple[Event, ...]


def read_run(folder: Path, *, metrics: Mapping[str, float], made_by: str) -> Run:
    """Read steps.csv, validation.csv and events.csv of one run.

    Raises:
        FileNotFoundError: one of the files is absent; the text names `made_by`.
        ValueError: a column is absent, a cell is no number, or there are no steps.
    """
    steps_file = folder / "steps.csv"
    rows = _read_rows(steps_file, columns=STEP_COLUMNS, made_by=made_by)
    if not rows:
        raise ValueError(f"{steps_file} holds no steps; delete it and run {made_by}")
    steps = _numbers(rows, columns=STEP_COLUMNS, source=steps_file, made_by=made_by)
    validation_file = folder / "validation.csv"
    validation = _numbers(
        _read_rows(validation_file, columns=VALIDATION_COLUMNS, made_by=made_by),
        columns=VALIDATION_COLUMNS,
        source=validation_file,
        made_by=made_by,
    )
    return Run(
        name=folder.name,
        metrics=metrics,
        steps=steps,
        phases=_phases(rows, steps=steps["step"], source=steps_file),
        validation=validation,
        events=_read_events(folder / "events.csv", made_by=made_by),
    )


def latest_pass(run: Run, *, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values with each step once, ascending.

    After a rollback a step occurs twice in the file; the later row is the one that the model kept.
    """
    last_row = {step: row for row, step in enumerate(run.steps["step"])}
    rows = np.array([last_row[step] for step in sorted(last_row)])
    return run.steps["step"][rows], run.steps[column][rows]


def typical(values: np.ndarray) -> float | None:
    """Return the median of the finite values; None without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None


def smooth(values: np.ndarray) -> np.ndarray:
    """Average over a centred window of a fortieth of the curve; gaps (NaN) do not spread."""
    window = max(1, len(values) // 40) | 1
    finite = np.isfinite(values)
    if window > len(values) or not finite.any():
        return values
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def thin(values: np.ndarray, *, num_buckets: int = 600) -> np.ndarray:
    """Return the rows to draw: the lowest and highest of each bucket, so that no spike is lost."""
    if len(values) <= 2 * num_buckets:
        return np.arange(len(values))
    kept: list[int] = []
    for rows in np.array_split(np.arange(len(values)), num_buckets):
        part = np.nan_to_num(values[rows], nan=0.0, posinf=0.0, neginf=0.0)
        kept += sorted({int(rows[part.argmin()]), int(rows[part.argmax()])})
    return np.array(kept)


def _read_rows(path: Path, *, columns: Sequence[str], made_by: str) -> list[dict[str, str]]:
    with require(path, made_by=made_by).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval=None)
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(
                f"{path} lacks the columns {', '.join(absent)}; delete it and run {made_by}"
            )
        rows = list(reader)
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{path} has a row cut short or too long; delete it and run {made_by}")
    return rows


def _numbers(
    rows: list[dict[str, str]], *, columns: Sequence[str], source: Path, made_by: str
) -> Columns:
    try:
        numbers = {
            name: np.array([float(row[name] or "nan") for row in rows], dtype=np.float64)
            for name in columns
        }
    except ValueError as error:
        raise ValueError(f"{source} is damaged ({error}); delete it and run {made_by}") from None
    if not np.isfinite(numbers["step"]).all():
        raise ValueError(f"{source} has a row without a step; delete it and run {made_by}")
    return numbers


def _read_events(path: Path, *, made_by: str) -> tuple[Event, ...]:
    rows = _read_rows(path, columns=EVENT_COLUMNS, made_by=made_by)
    unknown = sorted({row["kind"] for row in rows} - set(EVENT_KINDS))
    if unknown:
        raise ValueError(f"{path} has events {unknown}; expected one of {', '.join(EVENT_KINDS)}")
    steps = _numbers(rows, columns=("step",), source=path, made_by=made_by)["step"]
    return tuple(
        Event(int(step), row["kind"], row["detail"]) for step, row in zip(steps, rows, strict=True)
    )


def _phases(rows: list[dict[str, str]], *, steps: np.ndarray, source: Path) -> tuple[Phase, ...]:
    phases: dict[str, Phase] = {}
    previous = -np.inf
    for row, step in zip(rows, steps, strict=True):
        name = row.get("phase", "")
        known = phases.get(name)
        if known is None and step < previous:
            raise ValueError(
                f"{source}: phase {name!r} starts again at step {step:.0f} after step "
                f"{previous:.0f}; steps go on from phase to phase"
            )
        first = step if known is None else known.first_step
        phases[name] = Phase(name, first, max(step, first))
        previous = step
    return tuple(phases.values())
