"""Training step: dense against ternary, interleaved in one run.

    python benchmarks/training_step.py [--model nano] [--threads 2] [--repeats 30] [--json FILE]

Prints a table of medians and the ratio; other work on the machine disturbs both arms alike.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median

import torch
import yaml

from trilith.hardware import device_name, measured_matmul_flops, prepare_cpu
from trilith.model import ModelConfig, Transformer, build_model, training_flops_per_token
from trilith.quant import QuantConfig
from trilith.training.batches import Batch
from trilith.training.module import next_token_objective

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Time both arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="a file of conf/model")
    parser.add_argument("--quant", default="ternary", help="a file of conf/quant")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--context", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    torch.manual_seed(0)
    shape = _config(options.model, options.vocab_size)
    quant = QuantConfig(**_yaml(ROOT / "conf/quant" / f"{options.quant}.yaml"))
    arms = {"dense": build_model(shape, None), options.quant: build_model(shape, quant)}
    tokens = torch.randint(0, shape.vocab_size, (options.batch, options.context + 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    seconds = _interleaved(arms, batch, repeats=options.repeats)
    result = _result(arms, seconds, batch, context=options.context)
    result["settings"] = {k: v for k, v in vars(options).items() if k != "json"}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _interleaved(
    arms: dict[str, Transformer], batch: Batch, *, repeats: int
) -> dict[str, list[float]]:
    """Seconds of whole steps (forward, backward, clip, AdamW), the arms in turn; 3 warm-ups."""
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        for name, model in arms.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 3):
        for name, model in arms.items():
            start = time.perf_counter()
            next_token_objective(model, batch).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            if repeat >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _result(
    arms: dict[str, Transformer],
    seconds: dict[str, list[float]],
    batch: Batch,
    *,
    context: int,
) -> dict[str, object]:
    num_tokens = batch.inputs_BT.numel()
    peak = measured_matmul_flops()
    dense_s = median(seconds["dense"])
    rows = []
    print(f"{'arm':<16}{'step ms':>9}{'tokens/s':>11}{'MFU':>7}{'x dense':>9}")
    for name, model in arms.items():
        step_s = median(seconds[name])
        mfu = num_tokens / step_s * training_flops_per_token(model, context) / peak
        rows.append(
            {
                "arm": name,
                "step_ms": 1000 * step_s,
                "tokens_per_s": num_tokens / step_s,
                "mfu": mfu,
                "ratio_to_dense": step_s / dense_s,
            }
        )
        print(
            f"{name:<16}{1000 * step_s:>9.1f}{num_tokens / step_s:>11.0f}{mfu:>7.2f}"
            f"{step_s / dense_s:>9.2f}"
        )
    print(f"peak: {peak / 1e9:.0f} GFLOP/s (measured float32 matmul), {device_name()}")
    hardware = {"device": device_name(), "python": platform.python_version(), "peak_flops": peak}
    return {"hardware": hardware, "rows": rows}


def _config(name: str, vocab_size: int) -> ModelConfig:
    return ModelConfig(**_yaml(ROOT / "conf/model" / f"{name}.yaml") | {"vocab_size": vocab_size})


def _yaml(path: Path) -> dict[str, object]:
    return yaml.safe_load(path.read_text())


if __name__ == "__main__":
    main()
