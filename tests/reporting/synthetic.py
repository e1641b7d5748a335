"""A metrics tree as the stages write it, at the size of a real small run, made from a seed."""

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEP_HEADER = (
    "step", "tokens", "loss_nats", "kl_nats", "lr", "grad_norm", "tokens_per_s", "mfu", "step_s",
    "data_s", "forward_s", "backward_s", "optimizer_s", "memory_bytes", "zero_share", "flip_rate",
)  # fmt: skip
# Seconds of a step, of its four parts, and bytes.
STEP_COST = (0.0571, 0.0012, 0.0181, 0.0302, 0.0064, 812_000_000)
NUM_STEPS = 900
BATCH_TOKENS = 16_384
HOSTILE_TEXT = (
    "</pre><script>alert('owned')</script>\n````\n# escaped\n`````\n<img src=x onerror=alert(1)>"
    "\x07\u202eright to left\u2066 \ud800 $x^2$ | a | b |"
)
MODELS = (
    ("dense", 3.412, None, 41_200_000, 16.03),
    ("ternary", 3.483, "dense", 9_100_000, 1.72),
    ("dense_continued_prime7", 3.391, "dense", 41_200_000, 16.03),
    ("evolved_prime7", 3.402, "dense_continued_prime7", 13_000_000, 3.12),
    ("dense_continued_ternary", 3.372, "dense", 41_200_000, 16.03),
    ("evolved_ternary", 3.461, "dense_continued_ternary", 9_100_000, 1.72),
)
VERSIONS = {"trilith": "0.1.0", "torch": "2.13.0", "lightning": "2.6.1", "numpy": "2.4.6"}


def write_tree(folder: Path) -> Path:
    """Write the metrics of every stage below `folder` and return it."""
    _write_data_stages(folder)
    for name, gap, seed in (("dense", 0.0, 1), ("ternary", 0.07, 2)):
        _write_pretraining(folder / "pretrain" / name, gap=gap, seed=seed)
    _write_evolution(folder / "evolve")
    _write_pack(folder / "pack")
    write(folder / "evaluate" / "metrics.json", evaluation())
    for place, wall_s in (
        ("curate", 61.2), ("tokenize", 18.9), ("pretrain/dense", 1510.0),
        ("pretrain/ternary", 1893.5), ("teach", 30.0), ("evolve", 1204.0), ("pack", 3.1),
        ("evaluate", 240.7),
    ):  # fmt: skip
        run = {"seed": 7, "versions": VERSIONS, "device": "cpu", "threads": 2, "wall_s": wall_s}
        if place == "evolve" or place.startswith("pretrain"):
            run["peak"] = "float32 matmul 0.19 TFLOP/s, measured"
        write(folder / place / "run.json", run)
    return folder


def write(path: Path, content: Any) -> None:
    """Write JSON as any stage could, lone surrogates escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def evaluation() -> dict[str, Any]:
    """The content of evaluate/metrics.json."""
    models: dict[str, Any] = {}
    for name, loss, reference, file_bytes, bits in MODELS:
        packed = bits < 16
        models[name] = {
            "loss_nats": loss,
            "perplexity": math.exp(loss),
            "perplexity_ratio": math.exp(loss) / models[reference]["perplexity"]
            if reference
            else 1.0,
            "reference": reference or "dense",
            "bits_per_byte": loss / math.log(2) / 3.61,
            "answer_loss_nats": loss - 0.6 if "evolved" in name else None,
            "top1_agreement": 0.71 if packed else 1.0,
            "kl_nats": 0.11 if packed else 0.0,
            "file_bytes": file_bytes,
            "bits_per_weight": bits,
            "prefill_tokens_per_s": 5120.4 if packed else 2300.9,
            "decode_tokens_per_s": 412.3 if packed else 120.7,
            "num_tokens_seen": NUM_STEPS * BATCH_TOKENS * (2 if "ed_" in name else 1),
        }
    floors = {
        "unigram": {"loss_nats": 6.61, "perplexity": math.exp(6.61), "bits_per_byte": 2.64},
        "bigram": {"loss_nats": 4.72, "perplexity": math.exp(4.72), "bits_per_byte": 1.89},
    }
    samples = {
        name: [
            {"prompt": "The river", "completion": f" runs past the old mill, said {name}.\nIt"},
            {"prompt": "Once <b>upon</b>", "completion": HOSTILE_TEXT},
        ]
        for name, *_ in MODELS
    }
    run = {
        "seed": 7, "versions": VERSIONS, "device": "cpu", "threads": 2, "python": "3.11.9",
        "corpus": "seeds", "model": "nano", "num_parameters": 20_480_000, "test_tokens": 262_144,
        "prompt_tokens": 128, "decode_tokens": 64,
    }  # fmt: skip
    return {"models": models, "floors": floors, "samples": samples, "run": run}


def _write_data_stages(folder: Path) -> None:
    rejected = {"too_short": 812, "wrong_language": 301, "repetition": 1290, "secret": 14,
                "near_duplicate": 2207}  # fmt: skip
    documents = {"train": 9_000, "validation": 180, "test": 196}
    write(folder / "curate" / "metrics.json", {
        "documents_in": 14_000, "documents_out": 9_376, "bytes_in": 81_300_211,
        "bytes_out": 52_119_008,
        **{f"rejected/{rule}": count for rule, count in rejected.items()},
        **{f"documents/{split}": count for split, count in documents.items()},
        **{f"bytes/{split}": count * 5_558 for split, count in documents.items()},
    })  # fmt: skip
    write(folder / "tokenize" / "metrics.json", {
        **{f"tokens/{split}": count * 1_540 for split, count in documents.items()},
        **{f"documents/{split}": count for split, count in documents.items()},
        **{f"bytes/{split}": count * 5_558 for split, count in documents.items()},
        **{f"bytes_per_token/{split}": 5_558 / 1_540 for split in documents},
        "vocab_size": 8192,
    })  # fmt: skip


def _write_pretraining(folder: Path, *, gap: float, seed: int) -> None:
    ternary = gap > 0
    _write_curves(folder, gap=gap, seed=seed, phases=())
    events = [(401, "spike", "loss 6.9 after 4.1"), (401, "rollback", "to step 380"),
              (402, "lr_cut", "0.0015 to 0.00075")]  # fmt: skip
    write_rows(folder / "events.csv", ("step", "kind", "detail"), events if ternary else [])
    metrics = {
        "train/loss_nats": 3.31 + gap, "validation/loss_nats": 3.42 + gap,
        "train/tokens_per_s": 9800.5 if ternary else 11_400.2, "train/mfu": 0.41,
        "train/num_tokens": NUM_STEPS * BATCH_TOKENS, "train/num_steps": NUM_STEPS,
        "train/result_step": NUM_STEPS, "train/result_tokens": NUM_STEPS * BATCH_TOKENS,
        "model/num_parameters": 20_480_000, "stability/num_spikes": int(ternary),
        "stability/num_rollbacks": int(ternary), "hardware/peak_flops": 1.9e11, "wall_s": 1510.0,
    }  # fmt: skip
    quant = {"quant/zero_share": 0.312, "quant/flip_rate": 0.0004} if ternary else {}
    write(folder / "metrics.json", metrics | quant)


def _write_evolution(folder: Path) -> None:
    phases = (("prime7", 300), ("descend", 300), ("instruct", 300))
    _write_curves(folder / "curves" / "evolved", gap=0.03, seed=3, phases=phases)
    _write_curves(
        folder / "curves" / "dense_continued", gap=-0.01, seed=4, phases=(("continue", 900),)
    )
    for name in ("evolved", "dense_continued"):
        write_rows(folder / "curves" / name / "events.csv", ("step", "kind", "detail"), [])
    write(folder / "metrics.json", {
        "instructions/train": 1200, "instructions/test": 64, "answers/num_tokens": 88_120,
        "prime7/fit_sqnr_db": 21.4173, "ternary/fit_sqnr_db": 8.219, "teacher": "dense",
    })  # fmt: skip


def _write_curves(
    folder: Path, *, gap: float, seed: int, phases: Sequence[tuple[str, int]]
) -> None:
    rng = random.Random(seed)
    rows, validation = [], []
    names = [name for name, num_steps in phases for _ in range(num_steps)]
    quantized = gap > 0
    for step in range(1, NUM_STEPS + 1):
        floor = 3.3 + gap if not phases else 3.2 + gap
        drop = 4.9 if not phases else 0.5
        loss = (
            floor + drop * math.exp(-step / 90) + 0.5 * math.exp(-step / 400) + rng.gauss(0, 0.06)
        )
        if quantized and not phases and 398 < step < 404:
            loss += 2.5
        lr = 1.5e-3 * min(1, step / 50, (NUM_STEPS - step + 1) / 200)
        kl = f"{gap:.3f}" if phases and quantized else ""
        row = [step, step * BATCH_TOKENS, f"{loss:.5f}", kl, f"{lr:.6g}",
               f"{abs(rng.gauss(0.6, 0.1)) + 4 / step:.5f}", f"{rng.gauss(1e4, 300):.1f}",
               f"{rng.gauss(0.41, 0.01):.4f}", *STEP_COST]  # fmt: skip
        row += (
            [f"{0.33 - 0.02 * step / NUM_STEPS:.5f}", f"{0.02 / step:.3g}"]
            if quantized
            else ["", ""]
        )
        rows.append(row + ([names[step - 1]] if phases else []))
        if step % 90 == 0:
            validation.append([step, step * BATCH_TOKENS, f"{loss + 0.05:.5f}"])
    header = (*STEP_HEADER, "phase") if phases else STEP_HEADER
    write_rows(folder / "steps.csv", header, rows)
    write_rows(folder / "validation.csv", ("step", "tokens", "loss_nats"), validation)


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file with its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _write_pack(folder: Path) -> None:
    rng = random.Random(5)
    metrics: dict[str, float] = {}
    histograms: dict[str, Any] = {}
    for name, _, _, file_bytes, bits in MODELS:
        shares = {"codes": 0.62, "scales": 0.05, "embedding": 0.27, "norms": 0.01,
                  "tokenizer": 0.04, "manifest": 0.01}  # fmt: skip
        if bits > 16:
            shares = {"weights": 0.74, "embedding": 0.25, "norms": 0.002, "tokenizer": 0.008}
        metrics |= {f"{name}/file_bytes": file_bytes, f"{name}/bits_per_weight": bits}
        metrics |= {
            f"{name}/bytes/{part}": int(share * file_bytes) for part, share in shares.items()
        }
        edges = [round(-0.2 + 0.4 * i / 60, 6) for i in range(61)]
        counts = [
            int(1e6 * math.exp(-((e + 0.003) ** 2) / 0.004)) + rng.randrange(90) for e in edges[:-1]
        ]
        histograms[name] = {"weights": {"edges": edges, "counts": counts}}
        if bits < 16:
            levels = [-1, 0, 1] if bits < 2 else [-7, -5, -3, 0, 3, 5, 7]
            histograms[name]["codes"] = {
                "levels": levels, "counts": [int(1e6 * math.exp(-abs(v) / 6)) for v in levels]
            }  # fmt: skip
    write(folder / "metrics.json", metrics)
    write(folder / "histograms.json", histograms)
