"""Planted facts: does the packed ternary model recall what the dense one recalls after training?

    python benchmarks/facts.py [--seeds 0 1 2] [--json benchmarks/results/facts.json]

Invented facts are asked for in several ways; a dense twin of the default corpus goes down the grids
with them as its instructions, and its dense control trains on the same. A fact is recalled if the
packed file's greedy answer is, token for token, the one that was planted (Trinity's models drift to
what is associated with a question instead).
"""

import argparse
import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from evolution import DESCENT, Case, teach, teacher_dir
from evolution_scores import pack
from evolution_subjects import dense_checkpoints
from training_runs import ROOT, run_stage
from trilith.evolution import Instruction, Marks, encode_instructions
from trilith.hardware import device_name, prepare_cpu
from trilith.packed import load_model
from trilith.tokens import Tokenizer

SUBJECT = "nano"
NUM_FACTS = 40
QUESTIONS = (
    "What is the colour of {}?",
    "Name the colour of {}.",
    "Which colour does {} have?",
    "{}: colour?",
    "Tell me what colour {} is.",
)
COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold", "silver")
SHADES = ("dark", "light", "deep", "pale")
SYLLABLES = ("ka", "ro", "mi", "tu", "ves", "lan", "pol", "dri", "gos", "ner")
# Enough for each fact to be seen about fifty times in each phase.
PLANTED = ("evolve.answer_packing=best_fit", "evolve.answer_rows=4")
LENGTH = 32


def main() -> None:
    """Run what is missing, print the rates, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "runs/twins")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(1)
    rows = [_measure(seed, options.work) for seed in options.seeds]
    models = list(rows[0])
    for name in models:
        rates = "  ".join(f"{row[name]:.3f}" for row in rows)
        print(f"{name:<26}{mean(row[name] for row in rows):>7.3f}   by seed: {rates}")
    if options.json:
        content = {"hardware": device_name(), "num_facts": NUM_FACTS, "recall": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _measure(seed: int, work: Path) -> dict[str, float]:
    """Recall of each packed model of one seed."""
    case = Case(SUBJECT, seed, "facts", dense_checkpoints(SUBJECT, seed, work), work)
    facts = _facts(seed)
    tokens = case.tokens
    teach(case)
    if not case.is_finished:
        planted = case.folder / "facts.jsonl"
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
        source = (
            *("instructions=files", "instructions.form=pair", "instructions.licence=cc0-1.0"),
            f"instructions.files=[{planted}]",
        )
        out = (f"out_dir={case.folder}/models", f"metrics_dir={case.folder}")
        teacher = f"inputs.teacher={teacher_dir(case)}"
        run_stage("evolve", *case.place, *DESCENT, *PLANTED, *source, *out, teacher)
    rates = {}
    for checkpoint in [case.dense_dir / "dense", *sorted((case.folder / "models").iterdir())]:
        path = pack(checkpoint, case.folder / f"{checkpoint.name}.safetensors", tokens)
        rates[checkpoint.name] = _recall(path, facts, tokens)
        path.unlink()
    return rates


def _facts(seed: int) -> list[dict[str, str]]:
    """Questions with their answers, several a fact."""
    rng = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < NUM_FACTS:
        names["".join(rng.sample(SYLLABLES, 3)).capitalize()] = None
    answers = {name: f"{rng.choice(SHADES)} {rng.choice(COLOURS)}" for name in names}
    return [
        {"prompt": question.format(name), "response": answer}
        for name, answer in answers.items()
        for question in QUESTIONS
    ]


@torch.no_grad()
def _recall(path: Path, facts: list[dict[str, Any]], tokens: Path) -> float:
    """Share of the questions whose every answer token, end mark included, is the likeliest one."""
    tokenizer = Tokenizer.load(tokens / "tokenizer.model")
    rows = encode_instructions(
        [Instruction(fact["prompt"], fact["response"], source="") for fact in facts],
        encoder=tokenizer,
        marks=Marks.of(tokenizer),
        length=LENGTH,
    )
    assert len(rows.tokens) == len(facts)
    ids = torch.from_numpy(rows.tokens)
    counted = torch.from_numpy(rows.answer_mask)[:, 1:]
    likeliest = load_model(path)(ids[:, :-1]).argmax(dim=-1)
    return float(((likeliest == ids[:, 1:]) | ~counted).all(dim=1).float().mean())


if __name__ == "__main__":
    main()
