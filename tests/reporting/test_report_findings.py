"""Targets and the sentences of the report, against figures worked out by hand."""

from pathlib import Path
from typing import Any

from trilith.reporting import closing_lines
from trilith.reporting.findings import check_targets, findings, floor_finding


def _model(*, ratio: float | None, file_bytes: int, reference: str = "dense") -> dict[str, Any]:
    return {
        "perplexity_ratio": ratio,
        "file_bytes": file_bytes,
        "reference": reference,
        "bits_per_byte": 1.5,
    }


def _models() -> dict[str, dict[str, Any]]:
    return {
        "dense": _model(ratio=1.0, file_bytes=1000),
        "ternary": _model(ratio=1.12, file_bytes=251),
        "dense_continued": _model(ratio=0.9, file_bytes=1000),
        "evolved_prime7": _model(ratio=1.0201, file_bytes=500, reference="dense_continued"),
    }


def test_a_target_is_met_at_its_limit_and_missed_just_above() -> None:
    outcomes = [verdict.outcome for verdict in check_targets(_models())]
    assert outcomes == ["met", "missed", "not measured", "missed", "not measured"]


def test_each_packed_model_gets_a_sentence_and_a_dense_control_none() -> None:
    assert findings(_models()) == [
        "The packed ternary model reaches 1.12x the dense twin's perplexity in 0.25x its bytes.",
        "The packed evolved_prime7 model reaches 1.02x the perplexity of dense_continued "
        "in 0.50x its bytes.",
    ]


def test_a_model_below_the_floor_is_named() -> None:
    floors = {"unigram": {"bits_per_byte": 2.5}, "bigram": {"bits_per_byte": 1.5}}
    models = {"dense": {"bits_per_byte": 1.4}, "ternary": {"bits_per_byte": 1.5}}
    text = floor_finding(models, floors=floors)
    assert text == "Not better than the bigram floor (1.500 bits per byte): ternary."


def test_closing_lines_fit_a_terminal_and_name_page_and_misses() -> None:
    summary = {"models": _models(), "floors": {}, "run": {}}
    lines = closing_lines(summary, page=Path("reports/report.html"))
    assert 3 <= len(lines) <= 6
    assert lines[0] == "Report: reports/report.html"
    assert lines[-1].startswith("Targets: 1 of 5 met; evolved_prime7 perplexity_ratio 1.02")
    assert "evolved_ternary perplexity_ratio not measured" in lines[-1]


def test_a_summary_of_dense_alone_still_has_three_lines() -> None:
    summary = {"models": {"dense": _model(ratio=None, file_bytes=10)}, "floors": {}, "run": {}}
    assert 3 <= len(closing_lines(summary)) <= 6
