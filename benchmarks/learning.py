"""What a model of the size of stories260K learns from TinyStories, token by token.

    python benchmarks/learning.py [--json FILE]

Two arms of the same shape and tokens: ternary by the dense recipe (no ternary tricks) and by the
default recipe; held-out bits per byte after every 100 steps of 1,024 tokens.
"""

import argparse
import csv
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training_runs import ROOT, Run, available, finish, tokens_dir
from trilith.hardware import device_name
from twins import ON_GRID, SEEDS, TERNARY, ternary_arm

CORPUS = "tinystories"
VOCAB_SIZE = 512
NUM_STEPS = 600
# The shape of stories260K.
SHAPE = tuple(
    f"model.{key}={value}"
    for key, value in {
        "name": "stories",
        "width": 64,
        "num_layers": 5,
        "num_heads": 8,
        "num_kv_heads": 4,
        "mlp_width": 172,
    }.items()
)
SETTINGS = (*SHAPE, "train.validate_every=100", "train.validation_batches=24")
ARMS = (
    ternary_arm(
        "ternary, dense recipe", "ternary", "dense_then_ternary", **ON_GRID | {"peak_lr": 5e-3}
    ),
    TERNARY._replace(name="ternary, default recipe"),
)


def main() -> None:
    """Run what is missing, print the curves, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/twins")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not available([CORPUS]):
        return
    runs = [
        Run(CORPUS, VOCAB_SIZE, "nano", arm, seed, NUM_STEPS, SETTINGS)
        for seed in SEEDS
        for arm in ARMS
    ]
    folders = finish(runs, work=options.work, jobs=options.jobs)
    bits_per_nat = _tokens_per_byte(options.work) / math.log(2)
    curves: dict[str, list[list[float]]] = {arm.name: [] for arm in ARMS}
    tokens: list[int] = []
    for run, folder in zip(runs, folders, strict=True):
        rows = list(csv.DictReader((folder / "validation.csv").open()))
        tokens = [int(row["tokens"]) for row in rows]
        curves[run.arm.name].append([float(row["loss_nats"]) * bits_per_nat for row in rows])
    _print_curves(tokens, curves)
    if options.json:
        content: dict[str, Any] = {"hardware": device_name(), "threads": 1, "tokens": tokens}
        options.json.write_text(json.dumps(content | {"bits_per_byte": curves}, indent=2) + "\n")


def _tokens_per_byte(work: Path) -> float:
    manifest = json.loads((tokens_dir(CORPUS, VOCAB_SIZE, work) / "manifest.json").read_text())
    held_out = manifest["splits"]["validation"]
    return held_out["tokens"] / held_out["bytes"]


def _print_curves(tokens: list[int], curves: dict[str, list[list[float]]]) -> None:
    print(f"{'tokens':>9}" + "".join(f"{name:>28}" for name in curves))
    for place, seen in enumerate(tokens):
        cells = [[curve[place] for curve in seeds] for seeds in curves.values()]
        texts = [f"{mean(values):.3f} +- {stdev(values):.3f}" for values in cells]
        print(f"{seen:>9}" + "".join(f"{text:>28}" for text in texts))


if __name__ == "__main__":
    main()
