"""Instructions of the user's own through evolve, pack and evaluate, with fitted grids."""

import json
from pathlib import Path

from tests.pipelines.conftest import RunStage, places

TOLD = (
    "instructions=files",
    "instructions.files=[mine.jsonl]",
    "instructions.form=chat",
    "instructions.licence='CC BY-NC 4.0'",
    "instructions.held_out_share=0.2",
    "evolve.answer_packing=best_fit",
    "evolve.fit=gptq",
    "evolve.calibration_windows=4",
)


def chat(number: int) -> dict[str, object]:
    said = [("user", f"What is {number}?"), ("assistant", f"{number + 1} less one.")] * 2
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def test_a_file_of_chats_is_trained_on_and_its_test_split_scored(
    chain: Path, run_stage: RunStage
) -> None:
    rows = [chat(number) for number in range(80)]
    (chain / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    outcome = run_stage(chain, "evolve", *places("data/evolved"), *TOLD)
    assert outcome.status == 0, outcome.text
    assert "instructions of mine.jsonl: licence CC BY-NC 4.0" in outcome.text
    metrics = json.loads((chain / "reports/metrics/evolve/metrics.json").read_text())
    assert metrics["answers/num_repeated"] == 1
    assert 0 < metrics["answers/train"] < 80
    assert metrics["answers/num_rows"] <= metrics["answers/train"]
    errors = [key for key in metrics if "/fit/output_error/" in key]
    assert errors and not any(key.startswith("dense_continued") for key in errors)
    for script, out in (("pack", "data/packed"), ("evaluate", "data/evaluation")):
        outcome = run_stage(chain, script, *places(out), *TOLD)
        assert outcome.status == 0, outcome.text
    results = json.loads((chain / "reports/metrics/evaluate/metrics.json").read_text())
    assert 0 < results["run"]["test_answers"] < 80
    assert metrics["answers/train"] + results["run"]["test_answers"] <= 80
    config = json.loads((chain / "data/evolved/evolved_ternary/config.json").read_text())
    assert config["provenance"]["instructions_licence"] == "CC BY-NC 4.0"
