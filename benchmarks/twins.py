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
# Optimizer steps of 1,024 tokens each.
STEPS = {"nano": 1000, "micro": 300}
RECIPE_STEPS = 300
SIZES = {"nano": (), "micro": ("train.precision=bf16-mixed", "train.validation_batches=32")}


def _ternary(name: str, *overrides: str) -> Arm:
    return Arm(name, "ternary", overrides)


def _recipe(file: str, **values: object) -> tuple[str, ...]:
    chosen = f"recipe@pretrain.ternary.recipe={file}"
    return (chosen, *(f"pretrain.ternary.recipe.{key}={value}" for key, value in values.items()))


DENSE = Arm("dense", "dense")
TWINS = (DENSE, _ternary("ternary"))
DENSE_LR = 5e-3
# The first arms add one ingredient at a time to the dense recipe; the others change the default.
DENSE_RECIPE = _ternary(
    "dense recipe, absmean per tensor",
    "quant=ternary",
    *_recipe("ternary_cosine", peak_lr=DENSE_LR, second_half_weight_decay=0.1),
)
RECIPES = (
    DENSE,
    Arm("dense, twice the learning rate", "dense", ("pretrain.dense.recipe.peak_lr=1e-2",)),
    DENSE_RECIPE,
    _ternary(
        "+ twice the learning rate",
        "quant=ternary",
        *_recipe("ternary_cosine", second_half_weight_decay=0.1),
    ),
    _ternary("+ no decay in the second half", "quant=ternary", *_recipe("ternary_cosine")),
    _ternary("+ least squares per row", "quant=ternary_fitted", *_recipe("ternary_cosine")),
    _ternary("+ dense first (the default)", "quant=ternary_fitted"),
    _ternary("default, lambda ramp of 50 steps", *_recipe("dense_then_ternary", ramp_steps=50)),
    _ternary("default, z-loss 1e-4", *_recipe("dense_then_ternary", z_loss=1e-4)),
    _ternary("default, absmean per tensor", "quant=ternary"),
    _ternary("default, absmean per row", "quant=ternary_row"),
    _ternary("default, median", "quant=ternary_median"),
    _ternary("default, learned per row", "quant=ternary_learned"),
    _ternary("default, groups of 32", "quant=ternary_group", "quant.group_size=32"),
    _ternary("default, float activations", "quant=ternary_fitted", "quant.activation_bits=null"),
    _ternary("two stages", *_recipe("ternary_two_stage")),
    _ternary("warm-up, stable, decay", *_recipe("ternary_wsd")),
)


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("quality", "recipes"))
    parser.add_argument("--models", nargs="+", default=["nano", "micro"], choices=sorted(STEPS))
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
                Run("stdlib", VOCAB_SIZE, "nano", arm, seed, RECIPE_STEPS) for arm in RECIPES
            )
        return
    present = available(options.corpora)
    for seed in SEEDS:
        for model in options.models:
            for corpus in present:
                yield from (
                    Run(corpus, VOCAB_SIZE, model, arm, seed, STEPS[model], SIZES[model])
                    for arm in TWINS
                )


def _losses(folder: Path) -> dict[str, float]:
    content = json.loads((folder / "metrics.json").read_text())
    return {key: content[f"{key}/loss_nats"] for key in ("train", "validation")}


def _rows(results: list[tuple[Run, dict[str, float]]]) -> Iterator[dict[str, Any]]:
    """One row for each corpus, model and arm; ratios pair each seed with the dense twin's."""
    dense = {
        (run.corpus, run.model, run.seed): losses["validation"]
        for run, losses in results
        if run.arm == DENSE
    }
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
