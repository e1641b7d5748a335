"""Ternary models against their dense twins at equal tokens: corpora, sizes, recipes and seeds.

    python benchmarks/twins.py quality [--models nano micro] [--corpora stdlib tinystories novels]
    python benchmarks/twins.py recipes

Each run is `pipelines/pretrain.py` with the overrides of its arm, on one thread; `--jobs` run side
by side. Finished runs are kept in the work folder, so that a stopped benchmark goes on.
TinyStories and the novels are read from ../shared/data/text and skipped where that is absent.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training_runs import ROOT, Arm, Run, available, finish
from trilith.hardware import device_name

VOCAB_SIZE = 2048
SEEDS = (0, 1, 2)
# Of 1,024 tokens.
NUM_STEPS = {"nano": 1000, "micro": 500}
RECIPE_STEPS = 250
FEWER_BATCHES = ("train.validation_batches=32",)
SIZES = {
    "nano": (),
    "micro": ("train.precision=bf16-mixed", *FEWER_BATCHES),
}


def _recipe(variant: str, file: str, **values: object) -> tuple[str, ...]:
    chosen = f"recipe@pretrain.{variant}.recipe={file}"
    return (chosen, *(f"pretrain.{variant}.recipe.{key}={value}" for key, value in values.items()))


def dense_arm(name: str, file: str, **values: object) -> Arm:
    return Arm(name, "dense", _recipe("dense", file, **values))


def ternary_arm(name: str, quant: str, file: str, **values: object) -> Arm:
    return Arm(name, "ternary", (f"quant={quant}", *_recipe("ternary", file, **values)))


DENSE = dense_arm("dense", "dense_cosine")
TERNARY = ternary_arm("ternary", "ternary", "dense_then_ternary")
# In so few steps that recipes can be compared in an hour, Muon alone learns enough.
DENSE_MUON = dense_arm("dense, Muon", "dense_muon")
TWINS = (DENSE, TERNARY)

# The dense recipe of a twin on the grid from the first step: no ternary tricks.
ON_GRID = {"dense_share": 0.0, "ramp_share": 0.0, "second_half_weight_decay": 0.1, "peak_lr": 8e-3}
MUON = "dense_then_ternary_muon"
SAME_STAGES = {"optimizer": "muon", "peak_lr": 1.4e-2}
# The first arms add one ingredient at a time to the dense recipe; the others change the last.
RECIPES = (
    DENSE_MUON,
    dense_arm("dense, 1.75 times the rate", "dense_muon", peak_lr=1.4e-2),
    ternary_arm("dense recipe on the grid", "ternary", MUON, **ON_GRID),
    ternary_arm(
        "+ 1.75 times the rate, late decay 0", "ternary", MUON, dense_share=0.0, ramp_share=0.0
    ),
    ternary_arm("+ dense first", "ternary", MUON, ramp_share=0.0),
    ternary_arm("+ a lambda ramp of 50 steps", "ternary", MUON),
    ternary_arm("  median", "ternary_median", MUON),
    ternary_arm("  absmean per row", "ternary_row", MUON),
    ternary_arm("  least squares per row", "ternary_fitted", MUON),
    ternary_arm("  learned per row", "ternary_learned", MUON),
    Arm(
        "  least squares, groups of 32",
        "ternary",
        ("quant.group_size=32", "quant=ternary_group", *_recipe("ternary", MUON)),
    ),
    ternary_arm("  float activations", "ternary_w", MUON),
    ternary_arm("  z-loss 1e-4", "ternary", MUON, z_loss=1e-4),
    ternary_arm("  two stages, on the grid", "ternary", "ternary_two_stage", **SAME_STAGES),
    ternary_arm("  warm-up, stable, decay, on the grid", "ternary", "ternary_wsd", **SAME_STAGES),
)


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("quality", "recipes"))
    parser.add_argument("--models", nargs="+", default=["nano", "micro"], choices=sorted(SIZES))
    parser.add_argument("--corpora", nargs="+", default=["stdlib", "tinystories", "novels"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/twins")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    runs = list(_runs(options))
    folders = finish(runs, work=options.work, jobs=options.jobs)
    results = [(run, _losses(folder)) for run, folder in zip(runs, folders, strict=True)]
    rows = list(_rows(results))
    _print_table(rows)
    if options.json:
        content = {"hardware": device_name(), "threads": 1, "table": options.table, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    if options.table == "recipes":
        for seed in SEEDS:
            yield from (
                Run("stdlib", VOCAB_SIZE, "nano", arm, seed, RECIPE_STEPS, FEWER_BATCHES)
                for arm in RECIPES
            )
        return
    present = available(options.corpora)
    for seed in SEEDS:
        for model in options.models:
            for corpus in present:
                yield from (
                    Run(corpus, VOCAB_SIZE, model, arm, seed, NUM_STEPS[model], SIZES[model])
                    for arm in TWINS
                )


def _losses(folder: Path) -> dict[str, float]:
    content = json.loads((folder / "metrics.json").read_text())
    return {key: content[f"{key}/loss_nats"] for key in ("train", "validation")}


def _rows(results: list[tuple[Run, dict[str, float]]]) -> Iterator[dict[str, Any]]:
    """One row for each corpus, model and arm; ratios pair each seed with the dense twin's."""
    dense: dict[tuple[str, str, int], float] = {}
    for run, losses in results:
        # The first dense arm is the twin of all others.
        if run.arm.variant == "dense":
            dense.setdefault((run.corpus, run.model, run.seed), losses["validation"])
    groups = dict.fromkeys((run.corpus, run.model, run.arm.name) for run, _ in results)
    for corpus, model, name in groups:
        mine = [
            r for r in results if (r[0].corpus, r[0].model, r[0].arm.name) == (corpus, model, name)
        ]
        nats = [losses["validation"] for _, losses in mine]
        ratios = [
            math.exp(losses["validation"] - dense[corpus, model, run.seed]) for run, losses in mine
        ]
        yield {
            "corpus": corpus,
            "model": model,
            "arm": name,
            "num_steps": mine[0][0].num_steps,
            "validation_loss_nats": nats,
            "perplexity": math.exp(mean(nats)),
            "ratio_to_dense": mean(ratios),
            "ratio_stdev": stdev(ratios),
        }


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'corpus':<12}{'model':<7}{'arm':<36}{'nats':>7}{'perplexity':>12}{'x dense':>17}")
    for row in rows:
        ratio = f"{row['ratio_to_dense']:.3f} +- {row['ratio_stdev']:.3f}"
        print(
            f"{row['corpus']:<12}{row['model']:<7}{row['arm']:<36}"
            f"{mean(row['validation_loss_nats']):>7.3f}{row['perplexity']:>12.2f}{ratio:>17}"
        )


if __name__ == "__main__":
    main()
