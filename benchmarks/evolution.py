"""Evolution, measured on packed files: ways down the grids against the dense model trained on.

    python benchmarks/evolution.py [--models nano micro] [--arms descent direct ...] [--seeds 0 1 2]

For each model and seed a dense twin is trained, its predictions are kept, and each arm is one run
of `pipelines/evolve.py` on one thread; `--jobs` run side by side. Every model that comes out is
packed, and the file is read back and scored on test tokens. Finished runs are kept in the work
folder, so that a stopped benchmark goes on. Novels, TinyStories and stories260K are read from
../shared/data, and left out where that is absent.
"""

import argparse
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from tqdm import tqdm

from evolution_scores import Scores, score_run
from evolution_subjects import SUBJECTS, dense_checkpoints
from training_runs import COMMON, ROOT, available, run_stage
from trilith.hardware import device_name, prepare_cpu

PHASE_STEPS = 250
LONG = 1000
# Student's t for 95% by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def _arm(file: str, *overrides: str, **num_steps: int) -> tuple[str, ...]:
    steps = (f"evolve.phases.{name}.num_steps={steps}" for name, steps in num_steps.items())
    return (f"evolve={file}", *steps, *overrides)


NO_CONTROL = "evolve.control=false"
SEVEN_ALONE = "~evolve.phases.ternary"
NO_TEACHER = ("evolve.kl_weight=0", "evolve.top_k=null")
FADING = "evolve.kl_share=0.25"
DESCENT = _arm("prime_descent", prime7=PHASE_STEPS, ternary=PHASE_STEPS)
ARMS = {
    "descent": DESCENT,
    "descent, 2,000 steps": _arm("prime_descent", prime7=LONG, ternary=LONG),
    "direct": _arm("direct_ternary", NO_CONTROL, ternary=2 * PHASE_STEPS),
    "descent, 2,000 steps, fading": _arm(
        "prime_descent", NO_CONTROL, FADING, prime7=LONG, ternary=LONG
    ),
    "direct, 2,000 steps, fading": _arm("direct_ternary", NO_CONTROL, FADING, ternary=2 * LONG),
    "direct, 2,000 steps, no teacher": _arm("direct_ternary", *NO_TEACHER, ternary=2 * LONG),
    "7 levels alone": _arm("prime_descent", SEVEN_ALONE, prime7=2 * PHASE_STEPS),
    "7, 5, 3 levels": _arm("prime5_descent", NO_CONTROL, prime7=167, prime5=167, ternary=166),
    "two planes": _arm("planes_descent", NO_CONTROL, planes=PHASE_STEPS, ternary=PHASE_STEPS),
    "uniform": _arm("uniform_descent", NO_CONTROL, uniform7=PHASE_STEPS, ternary=PHASE_STEPS),
    "paced": (*DESCENT, NO_CONTROL, "evolve.kl_budget=0.02", "evolve.move_share=0.5"),
    "text first": (*DESCENT, NO_CONTROL, "evolve.text_share=0.5"),
    "gptq fit": (*DESCENT, NO_CONTROL, "evolve.fit=gptq"),
    "whole teacher": (*DESCENT, NO_CONTROL, "evolve.top_k=null"),
    "no teacher": (*DESCENT, NO_CONTROL, *NO_TEACHER),
    "noise 0.1": (*DESCENT, NO_CONTROL, "evolve.recipe.latent_noise=0.1"),
    "Trinity's formula": _arm("trinity", NO_CONTROL, prime7_unscaled=2 * PHASE_STEPS),
    "sign": _arm("direct_sign", NO_CONTROL, sign=2 * PHASE_STEPS),
    "fit of 7 levels, plain": _arm(
        "prime_descent", SEVEN_ALONE, NO_CONTROL, "evolve.fit=plain", prime7=0
    ),
    "fit of 7 levels, gptq": _arm(
        "prime_descent", SEVEN_ALONE, NO_CONTROL, "evolve.fit=gptq", prime7=0
    ),
    "fit of ternary, plain": _arm("no_training", NO_CONTROL, "evolve.fit=plain"),
    "fit of ternary, gptq": _arm("no_training", NO_CONTROL),
}


class Case(NamedTuple):
    """One run: a subject, a seed and an arm."""

    subject: str
    seed: int
    arm: str
    dense_dir: Path
    work: Path

    @property
    def folder(self) -> Path:
        name = "".join(c if c.isalnum() else "-" for c in self.arm)
        return self.work / "evolution" / f"{self.subject}-{self.seed}-{name}"

    @property
    def is_finished(self) -> bool:
        """True once its models are there."""
        return (self.folder / "metrics.json").is_file()

    @property
    def tokens(self) -> Path:
        """Where the shards lie, with the corpus beside them."""
        return SUBJECTS[self.subject].tokens(self.work)

    @property
    def place(self) -> tuple[str, ...]:
        """What the stages teach and evolve share."""
        return (
            *COMMON,
            *SUBJECTS[self.subject].shape(self.work),
            f"seed={self.seed}",
            f"inputs.tokens={self.tokens}",
            f"inputs.corpus={self.tokens.parent / 'corpus'}",
            f"inputs.checkpoints={self.dense_dir}",
            f"evolve.answer_length={SUBJECTS[self.subject].answer_length}",
        )


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    options = _options()
    prepare_cpu(1)
    cases = list(_cases(options))
    if options.finished:
        cases = [case for case in cases if case.is_finished]
    else:
        _run_missing(cases, jobs=options.jobs)
    scores = [_score(case) for case in tqdm(cases, unit="run")]
    rows = list(_rows(cases, scores))
    _print_table(rows)
    differences = list(_differences(rows))
    for row in differences:
        print(
            f"{row['subject']}: descent minus direct {row['mean_nats']:+.4f} nats, 95% interval "
            f"{row['low_nats']:+.4f} to {row['high_nats']:+.4f}"
        )
    if options.json:
        content = {"hardware": device_name(), "threads": 1, "rows": rows}
        content |= {"descent_minus_direct": differences}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _run_missing(cases: list[Case], *, jobs: int) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(teach, {(case.subject, case.seed): case for case in cases}.values()))
        list(tqdm(pool.map(_evolve, cases), total=len(cases), unit="run"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--finished", action="store_true", help="start no run: show what there is")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/twins")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """Train the dense models that are missing; give the cases that start from them."""
    present = available([SUBJECTS[name].corpus for name in options.models])
    names = [name for name in options.models if SUBJECTS[name].corpus in present]
    options.work.mkdir(parents=True, exist_ok=True)
    pairs = [(name, seed) for seed in options.seeds for name in names]
    for name, seed in pairs:
        checkpoints = dense_checkpoints(name, seed, options.work)
        for arm in options.arms:
            yield Case(name, seed, arm, checkpoints, options.work)


def teacher_dir(case: Case) -> Path:
    """Return where the predictions of a case's dense model are kept."""
    return case.dense_dir.parent / f"teacher-{case.seed}"


def teach(case: Case) -> None:
    """Keep the teacher's predictions for the arms of 500 steps; longer ones ask it themselves."""
    folder = teacher_dir(case)
    if not (folder / "manifest.json").is_file():
        longest = _arm("direct_ternary", ternary=2 * PHASE_STEPS)
        out = (f"out_dir={folder}", f"metrics_dir={folder}-metrics")
        run_stage("teach", *case.place, *longest, *out)


def _evolve(case: Case) -> None:
    if not case.is_finished:
        out = (f"out_dir={case.folder}/models", f"metrics_dir={case.folder}")
        teacher = f"inputs.teacher={teacher_dir(case)}"
        run_stage("evolve", *case.place, *ARMS[case.arm], *out, teacher)


def _score(case: Case) -> dict[str, Scores]:
    answer_length = SUBJECTS[case.subject].answer_length
    return score_run(
        case.folder, case.dense_dir / "dense", case.tokens, answer_length=answer_length
    )


def _rows(cases: list[Case], scores: list[dict[str, Scores]]) -> Iterator[dict[str, Any]]:
    """One row for each subject, arm and model on a grid, over its seeds.

    A ratio pairs the model with the dense one trained on for as many steps with the same seed,
    which the arm's own control or that of the descent is; with the dense twin where nothing was
    trained.
    """
    found = {case[:3]: score for case, score in zip(cases, scores, strict=True)}
    for name, arm in dict.fromkeys((case.subject, case.arm) for case in cases):
        seeds = sorted({case.seed for case in cases if case[0] == name and case.arm == arm})
        runs = [(seed, found[name, seed, arm]) for seed in seeds]
        for model in [m for m in runs[0][1] if m.startswith("evolved")]:
            dense = [_dense_of(found, name, seed, run[model]) for seed, run in runs]
            if None in dense:
                continue
            nats = [run[model].loss_nats for _, run in runs]
            base = [scores.loss_nats for scores in dense if scores is not None]
            ratios = [math.exp(a - b) for a, b in zip(nats, base, strict=True)]
            yield {
                "subject": name,
                "arm": arm,
                "model": model,
                "seeds": seeds,
                "num_steps": runs[0][1][model].num_steps,
                "loss_nats": nats,
                "dense_nats": base,
                "ratio": mean(ratios),
                "ratio_stdev": stdev(ratios) if len(ratios) > 1 else None,
                "answer_nats": [run[model].answer_nats for _, run in runs],
                "dense_twin_answer_nats": [run["dense"].answer_nats for _, run in runs],
            }


def _dense_of(
    found: dict[tuple[str, int, str], dict[str, Scores]], name: str, seed: int, scores: Scores
) -> Scores | None:
    """The dense model of the same seed trained on for as many steps; the best, if there are two."""
    dense = [
        other
        for (subject, of, _), run in found.items()
        for model, other in run.items()
        if (subject, of) == (name, seed) and model.startswith("dense")
        if other.num_steps == scores.num_steps
    ]
    return min(dense, key=lambda other: other.loss_nats, default=None)


def _differences(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Loss of the descent minus that of the direct way after as many steps, paired by seed."""
    ternary = {
        (row["subject"], row["arm"]): row["loss_nats"]
        for row in rows
        if row["model"] == "evolved_ternary"
    }
    for name in dict.fromkeys(row["subject"] for row in rows):
        descent, direct = ternary.get((name, "descent")), ternary.get((name, "direct"))
        if descent is None or direct is None or not 1 < len(descent) <= len(T_95) + 1:
            continue
        differences = [a - b for a, b in zip(descent, direct, strict=True)]
        middle = mean(differences)
        margin = T_95[len(descent) - 1] * stdev(differences) / math.sqrt(len(descent))
        yield {
            "subject": name,
            "by_seed_nats": differences,
            "mean_nats": middle,
            "low_nats": middle - margin,
            "high_nats": middle + margin,
        }


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'model':<7}{'arm':<26}{'file':<24}{'steps':>6}{'x dense':>16}{'answers':>9}")
    for row in rows:
        spread = "" if row["ratio_stdev"] is None else f" +- {row['ratio_stdev']:.3f}"
        answers = mean(row["answer_nats"])
        print(
            f"{row['subject']:<7}{row['arm']:<26}{row['model']:<24}{row['num_steps']:>6}"
            f"{row['ratio']:>8.3f}{spread:<8}{answers:>9.3f}"
        )


if __name__ == "__main__":
    main()
