"""The results table of the README is that of the committed report."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_results_table_says_what_the_summary_says() -> None:
    summary_path = ROOT / "reports" / "summary.json"
    if not summary_path.exists():
        pytest.skip("no reports/summary.json: the report of a run is being rewritten")
    models = json.loads(summary_path.read_text())["models"]
    readme = (ROOT / "README.md").read_text()
    for name, figures in models.items():
        row = (
            f"| {name} | {figures['perplexity']:.1f} | {figures['perplexity_ratio']:.3f} | "
            f"{figures['bits_per_byte']:.3f} | {figures['answer_loss_nats']:.2f} | "
            f"{figures['file_bytes'] / 1e6:.2f} | {figures['bits_per_weight']:.2f} |"
        )
        assert row in readme, f"README.md lacks the row {row}"
