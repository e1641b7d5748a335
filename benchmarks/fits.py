"""Fits: a dense model put on a grid and not trained, by each method, on its own kind of text.

    python benchmarks/fits.py stories260K.bin --text tinystories.txt --separator '<|endoftext|>'

The first half of the text calibrates, in windows drawn anew for each seed; windows at the end of
the second half are scored. Prints the perplexity as a multiple of the dense model's.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from trilith.evaluation import HeldOut, score_text
from trilith.evolution import FitMethod, fit_to_grid
from trilith.hardware import device_name, prepare_cpu
from trilith.imports import open_source
from trilith.model import Transformer
from trilith.quant import QuantConfig
from trilith.quant.scale import Granularity
from trilith.tokens import Tokenizer
from trilith.training.batches import TokenWindows

METHODS: tuple[FitMethod, ...] = ("plain", "weighted", "gptq")


class Setting(NamedTuple):
    """What all arms share."""

    dense: Transformer
    calibration: np.ndarray
    num_windows: int
    held_out: HeldOut
    dense_nats: float
    seeds: list[int]


def main() -> None:
    """Fit and score every arm, and print the table."""
    options = _options()
    prepare_cpu(options.threads)
    setting = _setting(options)
    print(f"dense: {setting.dense_nats:.4f} nats on {len(setting.held_out.tokens) - 1} tokens")
    print(f"{'grid':<10}{'scale':<12}{'fit':<10}{'output error':>13}{'x dense, by seed':>34}")
    rows = []
    for grid in options.grids:
        for size in options.group_sizes:
            granularity: Granularity = "group" if size else "row"
            quant = QuantConfig(grid, "least_squares", granularity, size or None, 8)
            for method in METHODS:
                row = _measure(quant, method, setting)
                ratios = "  ".join(f"{ratio:.3f}" for ratio in row["perplexity_ratio"])
                error = mean(row["output_error"])
                scale = f"{granularity} {size or ''}"
                print(f"{grid:<10}{scale:<12}{method:<10}{error:>13.4f}{ratios:>34}", flush=True)
                rows.append(row)
    print(f"{options.threads} threads, {device_name()}")
    if options.json:
        _write(options, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="anything that `trilith import` reads")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--separator", default="\n\n\n", help="between documents")
    parser.add_argument("--grids", nargs="+", default=["prime7", "ternary"])
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[0], help="0: a scale a row")
    parser.add_argument("--calibration-windows", type=int, default=16)
    parser.add_argument("--test-tokens", type=int, default=10_000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Setting:
    source = open_source(options.model)
    if source.tokenizer is None:
        raise SystemExit(f"{options.model} has no tokenizer beside it")
    dense = source.load().model
    tokens = _tokens(options, Tokenizer.from_bytes(source.tokenizer))
    middle = len(tokens) // 2
    scored = tokens[middle:][-options.test_tokens :]
    # Bytes are not used: no bits per byte are asked for.
    held_out = HeldOut(scored, num_bytes=1, context=dense.config.context)
    return Setting(
        dense,
        tokens[:middle],
        options.calibration_windows,
        held_out,
        _loss(dense, dense, held_out),
        options.seeds,
    )


def _measure(quant: QuantConfig, method: FitMethod, setting: Setting) -> dict[str, Any]:
    """Fit once a seed; the seed draws the windows."""
    errors, ratios = [], []
    for seed in setting.seeds:
        windows = TokenWindows(
            setting.calibration,
            context=setting.held_out.context,
            batch_size=setting.num_windows,
            seed=seed,
        )
        inputs_NT = windows.batch(0).inputs_BT
        fitted = fit_to_grid(setting.dense, quant, method=method, windows_NT=inputs_NT)
        errors.append(mean(fitted.output_errors.values()))
        nats = _loss(fitted.model.eval(), setting.dense, setting.held_out)
        ratios.append(math.exp(nats - setting.dense_nats))
    names = {"grid": quant.grid, "group_size": quant.group_size, "fit": method}
    return names | {"perplexity_ratio": ratios, "output_error": errors}


def _tokens(options: argparse.Namespace, tokenizer: Tokenizer) -> np.ndarray:
    texts = [text.strip() for text in options.text.read_text().split(options.separator)]
    encoded = tokenizer.encode_batch([text for text in texts if text])
    return np.array([token for ids in encoded for token in (tokenizer.bos_id, *ids)])


def _loss(model: Transformer, dense: Transformer, held_out: HeldOut) -> float:
    return score_text(model, reference=dense, held_out=held_out, name="fit").loss_nats


def _write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    hardware = {"device": device_name(), "python": platform.python_version()}
    settings = {k: v for k, v in vars(options).items() if k not in ("model", "text", "json")}
    content = {"hardware": hardware, "settings": settings, "rows": rows}
    options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
