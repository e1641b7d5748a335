"""Everything the report is made of: the metric files of the other stages, read and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trilith.files import read_json
from trilith.reporting.curves import Run, read_run

REFERENCE = "dense"
VARIANTS = ("dense", "ternary")
STAGES = ("curate", "tokenize", "pretrain", "teach", "evolve", "pack", "evaluate")

MODEL_FIGURES = ("loss_nats", "perplexity", "bits_per_byte", "file_bytes")
FLOOR_FIGURES = ("loss_nats", "perplexity", "bits_per_byte")

Figures = Mapping[str, float]


class Sample(NamedTuple):
    """A prompt and what a model made of it. Both are untrusted text."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Histogram:
    """Counts between edges (weights) or at levels (codes)."""

    positions: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """What evaluate measured, models in file order."""

    models: Mapping[str, Mapping[str, Any]]
    floors: Mapping[str, Figures]
    samples: Mapping[str, Sequence[Sample]]
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The metrics of all stages; `stage_runs` maps a folder such as pretrain/dense to its run."""

    curate: Figures
    tokenize: Figures
    pretrain: Sequence[Run]
    evolution: Sequence[Run]
    evolve: Mapping[str, Any]
    pack: Figures
    weights: Mapping[str, Histogram]
    codes: Mapping[str, Histogram]
    evaluation: Evaluation
    stage_runs: Mapping[str, Mapping[str, Any]]

    def run_of(self, folder: str) -> Mapping[str, Any]:
        """Return what a stage's run.json says; nothing when it left none."""
        return self.stage_runs.get(folder, {})


def read_inputs(metrics_dir: Path) -> Inputs:
    """Read and check the metric files below `metrics_dir`.

    Raises:
        FileNotFoundError: a required file is absent; the text names the stage that makes it.
        ValueError: a file is damaged; the text names the file and the key.
    """
    metrics_dir = Path(metrics_dir)
    weights, codes = _read_histograms(metrics_dir / "pack" / "histograms.json")
    evolve_dir = metrics_dir / "evolve"
    return Inputs(
        curate=_read_numbers(
            metrics_dir / "curate" / "metrics.json",
            made_by="curate",
            required=("documents_in", "documents_out"),
        ),
        tokenize=_read_numbers(
            metrics_dir / "tokenize" / "metrics.json", made_by="tokenize", required=("vocab_size",)
        ),
        pretrain=_read_pretraining(metrics_dir / "pretrain"),
        evolution=_read_evolution(evolve_dir / "curves"),
        evolve=_read_object(evolve_dir / "metrics.json", made_by="evolve")
        if evolve_dir.exists()
        else {},
        pack=_read_numbers(metrics_dir / "pack" / "metrics.json", made_by="pack", required=()),
        weights=weights,
        codes=codes,
        evaluation=_read_evaluation(metrics_dir / "evaluate" / "metrics.json"),
        stage_runs=_read_stage_runs(metrics_dir),
    )


def by_prefix(figures: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries below `prefix/`, without it, in file order."""
    start = f"{prefix}/"
    return {key[len(start) :]: value for key, value in figures.items() if key.startswith(start)}


def packed_parts(pack: Figures) -> dict[str, dict[str, float]]:
    """Return bytes by part for each packed model, in file order."""
    models: dict[str, dict[str, float]] = {}
    for key, value in pack.items():
        model, found, part = key.partition("/bytes/")
        if found:
            models.setdefault(model, {})[part] = value
    return models


def _read_pretraining(folder: Path) -> tuple[Run, ...]:
    others = sorted(path.name for path in _folders(folder) if path.name not in VARIANTS)
    runs = []
    for name in (*VARIANTS, *others):
        made_by = f"pretrain@{name}"
        metrics = _read_numbers(
            folder / name / "metrics.json", made_by=made_by, required=("train/num_steps",)
        )
        runs.append(read_run(folder / name, metrics=metrics, made_by=made_by))
    return tuple(runs)


def _read_evolution(folder: Path) -> tuple[Run, ...]:
    return tuple(
        read_run(path, metrics={}, made_by="evolve")
        for path in _folders(folder)
        if (path / "steps.csv").exists() or (path / "events.csv").exists()
    )


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _read_object(path: Path, *, made_by: str) -> dict[str, Any]:
    content = read_json(path, made_by=made_by)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged (got {type(content).__name__}, expected an object); "
            f"delete it and run {made_by}"
        )
    return content


def _read_numbers(path: Path, *, made_by: str, required: Sequence[str]) -> dict[str, float]:
    content = _read_object(path, made_by=made_by)
    _check_numbers(content, keys=required, where=str(path))
    _check_numbers(
        content, keys=[key for key, value in content.items() if value is not None], where=str(path)
    )
    return {key: value for key, value in content.items() if value is not None}


def _check_numbers(content: Mapping[str, Any], *, keys: Sequence[str], where: str) -> None:
    for key in keys:
        value = content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: {key}={value!r}, expected a number; run that stage again")
        if not math.isfinite(value):
            raise ValueError(f"{where}: {key}={value!r} is not finite; run that stage again")


def _read_histograms(path: Path) -> tuple[dict[str, Histogram], dict[str, Histogram]]:
    weights, codes = {}, {}
    for model, parts in _read_object(path, made_by="pack").items():
        where = f"{path}: {model}"
        if not isinstance(parts, dict) or not isinstance(parts.get("weights"), dict):
            raise ValueError(f"{where} has no weights histogram; delete it and run pack")
        weights[model] = _histogram(
            parts["weights"], positions="edges", num_more=1, where=f"{where}/weights"
        )
        if parts.get("codes"):
            codes[model] = _histogram(
                parts["codes"], positions="levels", num_more=0, where=f"{where}/codes"
            )
    return weights, codes


def _histogram(
    content: Mapping[str, Any], *, positions: str, num_more: int, where: str
) -> Histogram:
    places, counts = content.get(positions), content.get("counts")
    if not isinstance(places, list) or not isinstance(counts, list):
        raise ValueError(f"{where} lacks the lists {positions} and counts; run pack again")
    if not counts or len(places) != len(counts) + num_more:
        raise ValueError(
            f"{where} has {len(places)} {positions} for {len(counts)} counts; "
            f"expected {num_more} more {positions} than counts"
        )
    for name, numbers in ((positions, places), ("counts", counts)):
        indexed = {str(place): number for place, number in enumerate(numbers)}
        _check_numbers(indexed, keys=list(indexed), where=f"{where}/{name}")
    return Histogram(tuple(places), tuple(counts))


def _read_evaluation(path: Path) -> Evaluation:
    content = _read_object(path, made_by="evaluate")
    for key in ("models", "floors", "samples", "run"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"{path}: {key} is not an object; delete it and run evaluate")
    models, floors = content.get("models", {}), content.get("floors", {})
    if REFERENCE not in models:
        raise ValueError(
            f"{path}: models holds {sorted(models)}, expected {REFERENCE!r} among them; "
            "run evaluate again"
        )
    for name, figures in models.items():
        _check_model(figures, where=f"{path}: models/{name}")
        if figures.get("reference", REFERENCE) not in (None, *models):
            raise ValueError(
                f"{path}: models/{name}/reference={figures['reference']!r} is no model of this file"
            )
    for name, figures in floors.items():
        _check_numbers(figures, keys=FLOOR_FIGURES, where=f"{path}: floors/{name}")
    return Evaluation(
        models=models,
        floors=floors,
        samples=_samples(content.get("samples", {}), where=f"{path}: samples"),
        run=content.get("run", {}),
    )


def _check_model(figures: Any, *, where: str) -> None:
    if not isinstance(figures, dict):
        raise ValueError(f"{where} is not an object; delete the file and run evaluate")
    measured = [key for key, value in figures.items() if value is not None and key != "reference"]
    _check_numbers(figures, keys=(*MODEL_FIGURES, *measured), where=where)
    for key in ("perplexity", "file_bytes"):
        if figures[key] <= 0:
            raise ValueError(f"{where}: {key}={figures[key]!r}, expected more than 0")


def _samples(content: Mapping[str, Any], *, where: str) -> dict[str, list[Sample]]:
    try:
        return {
            model: [Sample(str(sample["prompt"]), str(sample["completion"])) for sample in samples]
            for model, samples in content.items()
        }
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{where} is damaged ({error!r}), expected lists of prompt and completion; "
            "run evaluate again"
        ) from None


def _read_stage_runs(metrics_dir: Path) -> dict[str, dict[str, Any]]:
    runs = {}
    for stage in STAGES:
        for path in sorted((metrics_dir / stage).glob("**/run.json")):
            folder = path.parent.relative_to(metrics_dir).as_posix()
            run = _read_object(path, made_by=stage)
            if run.get("wall_s") is not None:
                _check_numbers(run, keys=("wall_s",), where=str(path))
            runs[folder] = run
    return runs
