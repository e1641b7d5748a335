"""What the figures say: targets met or missed, and the sentences that open and close the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trilith.reporting.inputs import REFERENCE

Models = Mapping[str, Mapping[str, Any]]
Outcome = Literal["met", "missed", "not measured"]


class Target(NamedTuple):
    """A figure of a model that should be at most so much."""

    model: str
    figure: Literal["perplexity_ratio", "bytes_ratio"]
    at_most: float


class Verdict(NamedTuple):
    """A target beside what was measured."""

    target: Target
    measured: float | None
    outcome: Outcome


# The only place where the project's promises are written as numbers.
TARGETS = (
    Target("ternary", "perplexity_ratio", 1.12),
    Target("evolved_prime7", "perplexity_ratio", 1.02),
    Target("evolved_ternary", "perplexity_ratio", 1.12),
    Target("ternary", "bytes_ratio", 0.25),
    Target("evolved_ternary", "bytes_ratio", 0.25),
)


def check_targets(models: Models) -> tuple[Verdict, ...]:
    """Hold every target against what was measured."""
    verdicts = []
    for target in TARGETS:
        measured = _measured(models, target=target)
        outcome: Outcome = "not measured"
        if measured is not None:
            outcome = "met" if measured <= target.at_most else "missed"
        verdicts.append(Verdict(target, measured, outcome))
    return tuple(verdicts)


def bytes_ratio(models: Models, *, model: str, reference: str = REFERENCE) -> float:
    """Return the model's file size as a multiple of the reference's."""
    return models[model]["file_bytes"] / models[reference]["file_bytes"]


def reference_of(models: Models, *, model: str) -> str:
    """Return the dense model that `perplexity_ratio` of `model` is against."""
    return models[model].get("reference") or REFERENCE


def findings(models: Models) -> list[str]:
    """Return one sentence for each model that is smaller than its reference, in file order."""
    sentences = []
    for name, figures in models.items():
        reference = reference_of(models, model=name)
        size = bytes_ratio(models, model=name, reference=reference)
        if name == reference or size >= 1 or figures.get("perplexity_ratio") is None:
            continue
        against = (
            "the dense twin's perplexity"
            if reference == REFERENCE
            else (f"the perplexity of {reference}")
        )
        sentences.append(
            f"The packed {name} model reaches {figures['perplexity_ratio']:.2f}x {against} "
            f"in {size:.2f}x its bytes."
        )
    return sentences or ["No packed model was measured against a dense one."]


def floor_finding(models: Models, *, floors: Models) -> str:
    """Say whether all models beat the strongest floor."""
    if not floors:
        return "No floor was measured."
    name = min(floors, key=lambda floor: floors[floor]["bits_per_byte"])
    floor = floors[name]["bits_per_byte"]
    beaten = [model for model in models if models[model]["bits_per_byte"] >= floor]
    if beaten:
        return f"Not better than the {name} floor ({floor:.3f} bits per byte): {', '.join(beaten)}."
    return f"Every model beats the {name} floor of {floor:.3f} bits per byte."


def target_finding(verdicts: Sequence[Verdict]) -> str:
    """Say how many targets were met, and name the rest."""
    met = sum(verdict.outcome == "met" for verdict in verdicts)
    rest = [
        f"{target.model} {target.figure} not measured"
        if measured is None
        else f"{target.model} {target.figure} {measured:.4g}, at most {target.at_most:g} wanted"
        for target, measured, outcome in verdicts
        if outcome != "met"
    ]
    return f"Targets: {met} of {len(verdicts)} met" + ("; " + "; ".join(rest) if rest else "") + "."


def closing_lines(summary: Mapping[str, Any], *, page: Path | None = None) -> list[str]:
    """Return three to six lines for the terminal: where the report is and what it found.

    Args:
        summary: the content of summary.json.
        page: where report.html lies; without it the first line names the file alone.
    """
    models = summary["models"]
    return [
        f"Report: {page or 'report.html'}",
        *findings(models)[:3],
        floor_finding(models, floors=summary["floors"]),
        target_finding(check_targets(models)),
    ]


def _measured(models: Models, *, target: Target) -> float | None:
    if target.model not in models:
        return None
    if target.figure == "bytes_ratio":
        return bytes_ratio(models, model=target.model)
    return models[target.model].get("perplexity_ratio")
