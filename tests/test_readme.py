"""Tables of the committed README are those of the committed report and benchmarks."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def committed(name: str) -> str:
    """What HEAD holds: a run on this machine may have written another report since."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True
    )
    if shown.returncode:
        pytest.skip(f"no committed {name} here: {shown.stderr.strip()}")
    return shown.stdout


def test_the_results_table_says_what_the_summary_says() -> None:
    models = json.loads(committed("reports/summary.json"))["models"]
    readme = committed("README.md")
    for name, figures in models.items():
        row = (
            f"| {name} | {figures['perplexity']:.1f} | {figures['perplexity_ratio']:.3f} | "
            f"{figures['bits_per_byte']:.3f} | {figures['answer_loss_nats']:.2f} | "
            f"{figures['file_bytes'] / 1e6:.2f} | {figures['bits_per_weight']:.2f} |"
        )
        assert row in readme, f"README.md lacks the row {row}"


def test_the_table_of_the_cpu_engine_is_that_of_the_newest_run() -> None:
    newest = max((ROOT / "benchmarks/results").glob("cpu-*.json"))
    rows = json.loads(committed(f"benchmarks/results/{newest.name}"))["rows"]
    speeds = {(row["shape"], row["arm"]): row for row in rows}
    readme = committed("README.md")
    for shape, arm in speeds:
        if shape == "1.1b":
            large, small = speeds[shape, arm], speeds["125m", arm]
            row = (
                f"| {arm} | {large['prefill_tokens_per_s']:.0f} | "
                f"{large['decode_tokens_per_s']:.1f} | {small['prefill_tokens_per_s']:.0f} | "
                f"{small['decode_tokens_per_s']:.1f} |"
            )
            assert row in readme, f"README.md lacks the row {row}"
