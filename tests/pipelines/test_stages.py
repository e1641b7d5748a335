"""Every stage by hand, in order, each stopped by Ctrl-C and by a full disk before it passes."""

import json
from pathlib import Path

from tests.pipelines.conftest import STAGES, RunStage, places


def test_a_stage_that_is_stopped_leaves_nothing_half_and_then_passes(
    project: Path, run_stage: RunStage
) -> None:
    for script, out, extra in STAGES:
        arguments = (*places(out), *extra)
        for fault, status, text in (
            ("interrupt", 130, "stopped by Ctrl-C"),
            ("disk full", 1, "the disk is full"),
        ):
            outcome = run_stage(project, script, *arguments, fault=fault)
            assert outcome.status == status, (script, fault, outcome.text)
            assert text in outcome.text, (script, outcome.text)
            assert "Traceback" not in outcome.text
            assert not _outputs(project, out), (script, fault)
            assert not list(project.rglob(".*.partial-*")), (script, fault)
        outcome = run_stage(project, script, *arguments)
        assert outcome.status == 0, (script, outcome.text)
        assert not list(project.rglob(".*.partial-*"))
    summary = json.loads((project / "reports/summary.json").read_text())
    assert next(iter(summary["models"])) == "dense"
    assert {"ternary", "evolved_prime7", "evolved_ternary"} <= set(summary["models"])


def _outputs(project: Path, out: str) -> list[Path]:
    if out == "reports":
        return [path for path in (project / out).glob("*") if path.name != "metrics"]
    return [path for path in [project / out] if path.exists()]
