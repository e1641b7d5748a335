"""The results table of the committed README is that of the committed report."""

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
