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
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from tqdm import tqdm

from trilith.hardware import device_name

ROOT = Path(__file__).parents[1]
TEXT = ROOT.parent / "shared/data/text"
SEEDS = (0, 1, 2)
PASSAGE_CHARACTERS = 8000
# Optimizer steps of 1,024 tokens each.
STEPS = {"nano": 1000, "micro": 400}
RECIPE_STEPS = 500
COMMON = (
    *("hardware.threads=1", "tracking=disabled", "train.context=256", "train.micro_batch_size=4"),
    *("train.validation_batches=64", "hardware.peak_tflops=1"),
)


class Arm(NamedTuple):
    """One way to train: its name in the tables and what it sets."""

    name: str
    variant: str
    overrides: tuple[str, ...] = ()


def _ternary(name: str, *overrides: str) -> Arm:
    return Arm(name, "ternary", overrides)


def _recipe(file: str, **values: object) -> tuple[str, ...]:
    chosen = f"recipe@pretrain.ternary.recipe={file}"
    return (chosen, *(f"pretrain.ternary.recipe.{key}={value}" for key, value in values.items()))


DENSE = Arm("dense", "dense")
TWINS = (DENSE, _ternary("ternary"))
DENSE_LR = 5e-3
# The first arms add one ingredient at a time to the dense recipe; the others change the default.
RECIPES = (
    DENSE,
    _ternary(
        "dense recipe, absmean per tensor",
        "quant=ternary",
        *_recipe("ternary_cosine", peak_lr=DENSE_LR, second_half_weight_decay=0.1),
    ),
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


class Run(NamedTuple):
    """One training run."""

    corpus: str
    model: str
    arm: Arm
    seed: int
    num_steps: int

    @property
    def key(self) -> str:
        arm = "".join(c if c.isalnum() else "-" for c in self.arm.name)
        return f"{self.corpus}-{self.model}-{self.num_steps}-{arm}-{self.seed}"


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
    for corpus in dict.fromkeys(run.corpus for run in runs):
        _prepare(corpus, options.work)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = pool.map(lambda run: _losses(run, options.work), runs)
        results = list(zip(runs, tqdm(jobs, total=len(runs), unit="run"), strict=True))
    rows = list(_rows(results))
    _print_table(rows)
    if options.json:
        content = {"hardware": device_name(), "threads": 1, "table": options.table, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    if options.table == "recipes":
        for seed in SEEDS:
            yield from (Run("stdlib", "nano", arm, seed, RECIPE_STEPS) for arm in RECIPES)
        return
    present = [corpus for corpus in options.corpora if corpus == "stdlib" or TEXT.is_dir()]
    for corpus in set(options.corpora) - set(present):
        print(f"{corpus} is skipped: {TEXT} does not exist", file=sys.stderr)
    for seed in SEEDS:
        for model in options.models:
            for corpus in present:
                yield from (Run(corpus, model, arm, seed, STEPS[model]) for arm in TWINS)


def _prepare(corpus: str, work: Path) -> None:
    """Curate and tokenize a corpus, once."""
    folder = work / corpus
    if (folder / "tokens/manifest.json").is_file():
        return
    source = ["corpus=stdlib"]
    if corpus != "stdlib":
        texts = folder / "texts.jsonl"
        texts.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": text}) for text in _texts(corpus))
        texts.write_text("\n".join(lines) + "\n")
        source = [
            *("corpus=dataset", "corpus.source.name=json", "corpus.gates.min_letter_share=0"),
            *("corpus.source.licence=cc0-1.0", f"corpus.source.data_files=[{texts}]"),
        ]
    _stage("curate", *source, f"out_dir={folder}/corpus", f"metrics_dir={folder}/curate")
    tokens = (f"inputs.corpus={folder}/corpus", f"out_dir={folder}/tokens")
    _stage("tokenization", *tokens, f"metrics_dir={folder}/tokenize")


def _texts(corpus: str) -> Iterator[str]:
    if corpus == "tinystories":
        stories = (TEXT / "tinystories/train.txt").read_text().split("<|endoftext|>")
        yield from (story.strip() + "\n" for story in stories if story.strip())
        return
    for path in sorted((TEXT / corpus).glob("*.txt")):
        passage = ""
        for line in path.read_text(encoding="utf-8-sig").splitlines(keepends=True):
            passage += line
            if len(passage) > PASSAGE_CHARACTERS:
                yield passage
                passage = ""


def _losses(run: Run, work: Path) -> dict[str, float]:
    metrics_dir = work / "runs" / run.key
    metrics = metrics_dir / "metrics.json"
    if not metrics.is_file():
        inputs = (f"inputs.tokens={work}/{run.corpus}/tokens", f"out_dir={metrics_dir}/model")
        size = (f"model={run.model}", f"pretrain.num_steps={run.num_steps}", f"seed={run.seed}")
        own = (f"variant={run.arm.variant}", *run.arm.overrides, f"metrics_dir={metrics_dir}")
        _stage("pretrain", *COMMON, *inputs, *size, *own)
    content = json.loads(metrics.read_text())
    return {key: content[f"{key}/loss_nats"] for key in ("train", "validation")}


def _stage(name: str, *overrides: str) -> None:
    command = [sys.executable, str(ROOT / "pipelines" / f"{name}.py"), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")


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
