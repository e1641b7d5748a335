"""One training step: dense against ternary, all arms interleaved in one run.

    python benchmarks/training_step.py [--models nano micro] [--repeats 20] [--json FILE]

On a CPU: eager and compiled, float32 and bfloat16. On a GPU: bfloat16, compiled, the projections of
the ternary model once in bfloat16 and once on int8 tensor cores. Prints medians of whole steps
(quantization, forward, backward, clipping, AdamW); other work disturbs all arms alike.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import yaml

from trilith.hardware import HardwareConfig, device_name, find_peak, prepare_cpu
from trilith.model import ModelConfig, Transformer, build_model, training_flops_per_token
from trilith.quant import QuantConfig
from trilith.training.acceleration import AccelerationConfig, accelerated
from trilith.training.batches import Batch
from trilith.training.module import next_token_objective, start_quantized_step
from trilith.training.recipe import Recipe, build_optimizer

ROOT = Path(__file__).parents[1]
WARM_UPS = 3


class Arm(NamedTuple):
    """One way to compute a step."""

    name: str
    is_ternary: bool
    is_bf16: bool
    acceleration: AccelerationConfig


class Prepared(NamedTuple):
    """A model of an arm with its optimizer."""

    arm: Arm
    model: Transformer
    optimizer: torch.optim.Optimizer


def main() -> None:
    """Time the arms of each model and print the table."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["125m", "350m", "1.3b"] if on_gpu else ["nano", "micro"]
    )
    parser.add_argument("--quant", default="ternary", help="a file of conf/quant")
    parser.add_argument("--vocab-size", type=int, default=32_000 if on_gpu else 2048)
    parser.add_argument("--batch", type=int, default=8 if on_gpu else 4, help="sequences a step")
    parser.add_argument("--context", type=int, default=2048 if on_gpu else 256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled arms")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    peaks = [find_peak(HardwareConfig(options.threads, None), is_bfloat16=x) for x in (False, True)]
    arms = [a for a in _arms(on_gpu) if not (options.no_compile and a.acceleration.compile)]
    rows: list[dict[str, Any]] = []
    print(f"{'model':<7}{'arm':<24}{'step ms':>9}{'tokens/s':>11}{'MFU':>7}{'x dense':>9}")
    for name in options.models:
        for row in _measure(name, arms, options, device):
            row["mfu"] = row.pop("flops_per_s") / peaks[row["arm"].endswith("bf16") or on_gpu].flops
            rows.append(row)
            print(
                f"{row['model']:<7}{row['arm']:<24}{row['step_ms']:>9.1f}"
                f"{row['tokens_per_s']:>11.0f}{row['mfu']:>7.2f}{row['ratio_to_dense']:>9.2f}"
            )
    named = "; ".join(dict.fromkeys(peak.name for peak in peaks))
    print(f"peaks for MFU: {named}; {device_name()}")
    if options.json:
        hardware = {"device": device_name(), "python": platform.python_version(), "peak": named}
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        content = {"hardware": hardware, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _arms(on_gpu: bool) -> Iterator[Arm]:
    eager = AccelerationConfig("int8", compile=False, checkpoint_activations=False)
    compiled = AccelerationConfig("int8", compile=True, checkpoint_activations=False)
    if on_gpu:
        bf16 = AccelerationConfig("float", compile=True, checkpoint_activations=False)
        yield Arm("dense bf16", False, True, bf16)
        yield Arm("ternary bf16", True, True, bf16)
        yield Arm("ternary int8", True, True, compiled)
        return
    for precision, is_bf16 in (("fp32", False), ("bf16", True)):
        for way, acceleration in (("eager", eager), ("compiled", compiled)):
            for kind, is_ternary in (("dense", False), ("ternary", True)):
                yield Arm(f"{kind} {way} {precision}", is_ternary, is_bf16, acceleration)


def _measure(
    name: str, arms: list[Arm], options: argparse.Namespace, device: torch.device
) -> Iterator[dict[str, Any]]:
    # Variants of a block add up to a limit, beyond which the compiler gives up without a word.
    torch.compiler.reset()
    shape = ModelConfig(
        **_yaml(f"model/{name}") | {"vocab_size": options.vocab_size, "context": options.context}
    )
    recipe = Recipe(**_yaml("recipe/ternary_cosine"))
    tokens = torch.randint(0, shape.vocab_size, (options.batch, options.context + 1), device=device)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    with ExitStack() as stack:
        prepared = []
        for arm in arms:
            torch.manual_seed(0)
            quant = QuantConfig(**_yaml(f"quant/{options.quant}")) if arm.is_ternary else None
            model = build_model(shape, quant).to(device)
            stack.enter_context(accelerated(model, arm.acceleration, device))
            prepared.append(Prepared(arm, model, build_optimizer(model, recipe)))
        seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for repeat in range(options.repeats + WARM_UPS):
            for one in prepared:
                elapsed_s = _step(one, batch, recipe)
                if repeat >= WARM_UPS:
                    seconds[one.arm.name].append(elapsed_s)
    yield from _rows(name, prepared, seconds, batch)


def _step(one: Prepared, batch: Batch, recipe: Recipe) -> float:
    """Seconds of one step."""
    device_type = batch.inputs_BT.device.type
    _synchronize()
    start = time.perf_counter()
    with torch.autocast(device_type, torch.bfloat16, enabled=one.arm.is_bf16):
        start_quantized_step(one.model, step=0, num_steps=1, recipe=recipe)
        total = next_token_objective(one.model, batch).total
    total.backward()
    torch.nn.utils.clip_grad_norm_(one.model.parameters(), recipe.clip_norm)
    one.optimizer.step()
    one.optimizer.zero_grad()
    _synchronize()
    return time.perf_counter() - start


def _rows(
    name: str, prepared: list[Prepared], seconds: dict[str, list[float]], batch: Batch
) -> Iterator[dict[str, Any]]:
    """Ratios are to the dense arm of the same way and precision, paired step by step."""
    num_tokens, context = batch.inputs_BT.numel(), batch.inputs_BT.shape[1]
    for arm, model, _ in prepared:
        step_s = median(seconds[arm.name])
        twin = arm.name.replace("ternary", "dense").replace("int8", "bf16")
        ratios = [
            mine / dense for mine, dense in zip(seconds[arm.name], seconds[twin], strict=True)
        ]
        tokens_per_s = num_tokens / step_s
        yield {
            "model": name,
            "arm": arm.name,
            "step_ms": 1000 * step_s,
            "tokens_per_s": tokens_per_s,
            "flops_per_s": tokens_per_s * training_flops_per_token(model, context),
            "ratio_to_dense": median(ratios),
        }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "conf" / f"{name}.yaml").read_text())


if __name__ == "__main__":
    main()
