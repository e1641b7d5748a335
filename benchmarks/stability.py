"""Stability: injected faults that are caught, false alarms in clean steps, cost of the watch.

    python benchmarks/stability.py [--model nano] [--threads 1] [--json FILE]

Trains on Python source, byte by byte, so that it needs no data. Prints a table. The cost is
processor time, which other work on the machine stretches less than the clock.
"""

import argparse
import json
import logging
import math
import platform
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from faults import FAULT_KINDS, FaultKind, FaultyObjective
from trilith.hardware import device_name, prepare_cpu
from trilith.model import ModelConfig, Transformer, build_model
from trilith.quant import QuantConfig
from trilith.training.acceleration import AccelerationConfig, accelerated
from trilith.training.batches import Batch, TokenWindows
from trilith.training.detector import Detector, GridSignals, StabilityConfig, StepSignals
from trilith.training.fit import Plan, RunPlace, TrainConfig, fit
from trilith.training.module import next_token_objective, start_quantized_step
from trilith.training.recipe import Recipe, build_optimizer
from trilith.training.signals import WeightWatch
from trilith.training.snapshot import take_snapshot
from trilith.training.tracking import TrackingConfig, start_run

ROOT = Path(__file__).parents[1]
NUM_BYTES = 2_000_000
VOCAB_SIZE = 256


def main() -> None:
    """Run the three parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="a file of conf/model")
    parser.add_argument("--quant", default="ternary", help="a file of conf/quant")
    parser.add_argument("--recipe", default="ternary_cosine", help="a file of conf/recipe")
    parser.add_argument("--context", type=int, default=64, help="tokens a sequence when training")
    parser.add_argument("--steps", type=int, default=600, help="real training steps of each run")
    parser.add_argument("--faults", type=int, default=20, help="of each kind")
    parser.add_argument("--synthetic-steps", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=60, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    logging.getLogger("trilith").setLevel(logging.ERROR)
    result = {
        "hardware": {"device": device_name(), "python": platform.python_version()},
        "synthetic": _synthetic_alarms(options.synthetic_steps),
        "training": _train_with_and_without_faults(options),
        "cost": _cost(options),
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
    }
    _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _synthetic_alarms(num_steps: int) -> dict[str, int]:
    """False alarms over runs of 10,000 steps with noise of Student's t, 10 degrees of freedom."""
    num_alarms = 0
    for seed in range(num_steps // 10_000):
        noise = np.random.default_rng(seed).standard_t(10, size=(10_000, 3))
        detector = Detector(_config())
        for step, (a, b, c) in enumerate(noise):
            rate = min(1.0, (step + 1) / 60) * (1 + math.cos(math.pi * step / 10_000))
            signals = StepSignals(
                loss_nats=2 + 6 * math.exp(-step / 300) + 0.15 * a,
                grad_norm=(0.3 + math.exp(-step / 500)) * math.exp(0.12 * b),
                update_size=1e-3 * rate * math.exp(0.02 * c),
                foreign_change=0.0,
            )
            grid = GridSignals(0.002 + 0.035 * rate, 0.31 + 0.15 * step / 10_000, 0.3)
            num_alarms += (
                detector.check(step, signals, grid if step % 10 == 0 else None) is not None
            )
    return {"num_steps": num_steps, "num_false_alarms": num_alarms}


def _train_with_and_without_faults(options: argparse.Namespace) -> dict[str, Any]:
    clean, clean_loss = _train(options, {})
    faults = _draw_faults(options)
    caught, loss = _train(options, faults)
    by_kind = {
        kind: {
            "num_injected": sum(own == kind for own in faults.values()),
            "num_caught": sum(step in caught for step, own in faults.items() if own == kind),
        }
        for kind in FAULT_KINDS
    }
    return {
        "num_clean_steps": options.steps,
        "num_false_alarms": len(clean) + len(set(caught) - set(faults)),
        "faults": by_kind,
        "clean_loss_nats": clean_loss,
        "loss_after_faults_nats": loss,
    }


def _draw_faults(options: argparse.Namespace) -> dict[int, FaultKind]:
    """Kinds in random order at random steps, once the windows say what is usual."""
    draw = random.Random(0)
    kinds = list(FAULT_KINDS) * options.faults
    draw.shuffle(kinds)
    steps = range(_config().min_history + 60, options.steps)
    return dict(zip(sorted(draw.sample(steps, len(kinds))), kinds, strict=True))


def _train(options: argparse.Namespace, faults: dict[int, FaultKind]) -> tuple[list[int], float]:
    """Train from the same weights on the same batches; return steps of alarms and the loss."""
    stream = _source_bytes()
    held_out = stream[-50_000:]
    shape = {"batch_size": 4, "seed": 0, "context": options.context}
    plan = Plan(
        options.steps,
        Recipe(**_yaml("recipe", options.recipe)),
        FaultyObjective(next_token_objective, faults, seed=0),
        TokenWindows(stream[:-50_000], **shape),
        TokenWindows(held_out, **shape),
    )
    with tempfile.TemporaryDirectory() as folder:
        place = _place(Path(folder))
        metrics = fit(_model(options), plan=plan, config=_train_config(options), place=place)
        events = (place.metrics_dir / "events.csv").read_text().splitlines()[1:]
    alarms = [int(row.split(",")[0]) for row in events if row.split(",")[1] == "spike"]
    return alarms, metrics["validation/loss_nats"]


def _cost(options: argparse.Namespace) -> dict[str, float]:
    """Processor milliseconds of a default training step, and of what stability adds to it.

    Steps with and without the watch take turns. Its parts are timed where they run, between real
    steps; grid signals and snapshots are spread over the steps between two of them.
    """
    config, train = _config(), _yaml("train", "cpu")
    model = _model(options, vocab_size=2048)
    recipe = Recipe(**_yaml("recipe", options.recipe))
    optimizer = build_optimizer(model, recipe)
    watch, detector = WeightWatch(model), Detector(config)
    tokens = torch.randint(2048, (train["micro_batch_size"], train["context"] + 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    seconds: dict[str, list[float]] = defaultdict(list)
    acceleration = AccelerationConfig(**train["acceleration"])
    with accelerated(model, acceleration, torch.device("cpu")):
        for repeat in range(2 * options.repeats + 6):
            is_watched, start = repeat % 2 == 1, time.process_time()
            start_quantized_step(model, step=repeat, num_steps=10_000, recipe=recipe)
            watched = _timed(watch.arm) if is_watched else 0.0
            loss = next_token_objective(model, batch)
            loss.total.backward()
            watched += _timed(watch.look) if is_watched else 0.0
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if is_watched:
                watched += _timed(_check, watch, detector, loss.nats, norm, with_grid=False)
            elapsed = time.process_time() - start
            if not is_watched:
                # In a run the watch has seen every step, and arming costs nothing.
                watch.disarm()
                watch.arm()
            if repeat >= 6:
                seconds["on" if is_watched else "off"].append(elapsed)
                seconds["watch"] += [watched] if is_watched else []
    seconds["grid"] = _grid_seconds(watch, detector)
    seconds["snapshot"] = [
        _timed(take_snapshot, model, optimizer, step=0, recipe_step=0, windows={})
        for _ in range(10)
    ]
    return _shares({name: 1000 * median(values) for name, values in seconds.items()}, config)


def _shares(ms: dict[str, float], config: StabilityConfig) -> dict[str, float]:
    added = ms["watch"] + ms["grid"] / config.grid_every + ms["snapshot"] / config.snapshot_every
    return {
        "step_ms": ms["off"],
        "watched_step_ms": ms["on"],
        "watch_ms": ms["watch"],
        "grid_signals_ms": ms["grid"],
        "snapshot_ms": ms["snapshot"],
        "added_ms_per_step": added,
        "added_share": added / ms["off"],
        "share_by_turns": ms["on"] / ms["off"] - 1,
    }


def _grid_seconds(watch: WeightWatch, detector: Detector) -> list[float]:
    """What a measure of the codes adds to a check."""
    value = torch.tensor(1.0)
    seconds = []
    for _ in range(20):
        watch.arm()
        watch.look()
        without = _timed(_check, watch, detector, value, value, with_grid=False)
        seconds.append(_timed(_check, watch, detector, value, value, with_grid=True) - without)
    return seconds


def _check(
    watch: WeightWatch, detector: Detector, loss: Tensor, norm: Tensor, *, with_grid: bool
) -> None:
    reading = watch.read(0, loss_nats=loss, grad_norm=norm, lr_factor=1.0, with_grid=with_grid)
    detector.check(0, *reading.signals())


def _timed(call: Callable[..., Any], *arguments: Any, **named: Any) -> float:
    start = time.process_time()
    call(*arguments, **named)
    return time.process_time() - start


def _model(options: argparse.Namespace, vocab_size: int = VOCAB_SIZE) -> Transformer:
    torch.manual_seed(0)
    shape = _yaml("model", options.model) | {"vocab_size": vocab_size}
    return build_model(ModelConfig(**shape), QuantConfig(**_yaml("quant", options.quant)))


def _train_config(options: argparse.Namespace) -> TrainConfig:
    """The default one with short sequences, and enough snapshots for a fault every five steps."""
    values = _yaml("train", "cpu") | {"context": options.context, "validation_batches": 64}
    values |= {"validate_every": 10_000, "checkpoint_every": 10_000}
    values["acceleration"] = AccelerationConfig(**values["acceleration"])
    values["stability"] = replace(_config(), snapshot_every=10, max_rollbacks=10_000)
    return TrainConfig(**values)


def _place(folder: Path) -> RunPlace:
    tracking = TrackingConfig("disabled", "trilith", str(folder / "runs"))
    return RunPlace(
        name="stability",
        resume_dir=folder / "resume",
        metrics_dir=folder / "metrics",
        wandb_run=start_run(tracking, name="stability", run_id="stability", settings={}),
        peak_flops=1e12,
        seed=0,
    )


def _source_bytes() -> np.ndarray:
    """Python's own library as a stream of bytes."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)[:NUM_BYTES]
    return np.frombuffer(text, np.uint8).astype(np.uint16)


def _config() -> StabilityConfig:
    return StabilityConfig(**_yaml("train", "cpu")["stability"])


def _yaml(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())


def _print(result: dict[str, Any]) -> None:
    training, cost = result["training"], result["cost"]
    for kind, counts in training["faults"].items():
        print(f"{kind:<18}{counts['num_caught']:>4} of {counts['num_injected']} caught in the step")
    for name, part, num in (
        ("training", training, training["num_clean_steps"]),
        ("synthetic", result["synthetic"], result["synthetic"]["num_steps"]),
    ):
        print(f"{part['num_false_alarms']} false alarms in {num} clean {name} steps")
    print(
        f"loss: {training['loss_after_faults_nats']:.3f} nats after all faults, "
        f"{training['clean_loss_nats']:.3f} without"
    )
    print(
        f"cost: {cost['added_ms_per_step']:.2f} ms of {cost['step_ms']:.1f} ms a step "
        f"({cost['added_share']:.2%}); {result['hardware']['device']}"
    )


if __name__ == "__main__":
    main()
