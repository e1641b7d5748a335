"""The GPU engine: products of single tokens and of prompts beside cuBLAS in bfloat16, whole steps.

    python benchmarks/gpu.py                 # on one GPU; writes JSON and a roofline figure
    python benchmarks/gpu.py --check         # every kernel on tiny shapes in Triton's interpreter

Medians of launches timed by events, each after a write of more than the L2 cache holds. Arms with
"+ quantize" start from floats, as in a model; the others from int8. Bandwidths count codes,
scales, activations and outputs once.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from trilith.files import write_json
from trilith.hardware import device_name, device_named
from trilith.kernels import PackedWeight, pack_weight
from trilith.model import ModelConfig, Transformer
from trilith.quant import CODECS, GRIDS, QuantizedWeight

RESULTS = Path(__file__).parent / "results"
# More than the L2 cache of any GPU, and long enough to hide the launch that follows.
_FLUSH_BYTES = 2**29
# int8 tensor cores do twice the operations of bfloat16 (data sheets of all GPUs in the table).
_INT8_SPEEDUP = 2

Row = dict[str, Any]


class Plan(NamedTuple):
    """What is timed, and where."""

    device: torch.device
    shapes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    prompt_tokens: int
    copy_bytes: int
    model: ModelConfig
    num_steps: int
    repeats: int


def _model(*, width: int, layers: int, mlp: int, vocab: int, heads: tuple[int, int]) -> ModelConfig:
    norms = False, False, False
    sizes = "bench", vocab, width, layers, *heads
    return ModelConfig(*sizes, "swiglu", mlp, 2048, 1e4, 1e-5, *norms)


def gpu_plan(repeats: int) -> Plan:
    """The shapes of known ternary models, and the shape of TinyLlama-1.1B as a whole."""
    shapes = ((20480, 3200), (13824, 2560), (2560, 6912), (4096, 4096))
    model = _model(width=2048, layers=22, mlp=5632, vocab=32000, heads=(32, 4))
    device = torch.device("cuda")
    return Plan(device, shapes, (1, 2, 4, 16, 64), 2048, 2**30, model, 128, repeats)


def check_plan() -> Plan:
    """Shapes small enough for the interpreter."""
    model = _model(width=32, layers=1, mlp=48, vocab=50, heads=(4, 2))
    return Plan(torch.device("cpu"), ((66, 130),), (1, 5), 20, 2**16, model, 2, 1)


@torch.inference_mode()
def main() -> int:
    """Time everything; print tables, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="tiny shapes in the interpreter")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and figure")
    options = parser.parse_args()
    if options.check:
        os.environ |= {"TRITON_INTERPRET": "1", "TRILITH_KERNELS": "triton"}
        with tempfile.TemporaryDirectory() as folder:
            run(check_plan(), Path(folder))
        print("every kernel ran in the interpreter; its times say nothing")
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device; nothing was measured (--check runs without one)", file=sys.stderr)
        return 1
    run(gpu_plan(options.repeats), options.out)
    return 0


def run(plan: Plan, folder: Path) -> None:
    """Time a plan and write what was found."""
    copy_gb_per_s = time_copy(plan)
    decode = [row for shape in plan.shapes for row in time_decode(plan, shape, copy_gb_per_s)]
    prefill = [row for shape in plan.shapes for row in time_prefill(plan, shape)]
    engine = time_engine(plan)
    name = f"gpu-{datetime.date.today().isoformat()}"
    hardware = {"device": device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    content = {
        "hardware": hardware,
        "settings": {"repeats": plan.repeats, "flush_bytes": _FLUSH_BYTES},
        "copy_gb_per_s": copy_gb_per_s,
        "decode": decode,
        "prefill": prefill,
        "engine": engine,
    }
    write_json(folder / f"{name}.json", content)
    draw_roofline(content, folder / f"{name}.svg")
    print(f"copy {copy_gb_per_s:.0f} GB/s, {hardware['device']}; {folder / name}.json and .svg")


def time_copy(plan: Plan) -> float:
    """Bytes read and written each second by a copy, in GB/s."""
    source = torch.empty(plan.copy_bytes, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    return 2 * plan.copy_bytes / time_launch(plan, lambda: target.copy_(source)) / 1e9


def time_decode(plan: Plan, shape: tuple[int, int], copy_gb_per_s: float) -> list[Row]:
    """Batches of single tokens: both ternary layouts beside bfloat16."""
    dense = torch.randn(shape, device=plan.device, dtype=torch.bfloat16)
    rows = []
    for batch in plan.batches:
        x = torch.randn(batch, shape[1], device=plan.device, dtype=torch.bfloat16)
        dense_s = time_launch(plan, lambda x=x: F.linear(x, dense))
        rows.append(_row("bf16", shape, x, dense_s, dense.nbytes))
        for layout in ("bits2", "base3"):
            product = _product(shape, layout, plan.device)
            num_bytes = product.codes.nbytes + product.factor.nbytes
            tokens = product.quantize(x)
            alone_s = time_launch(
                plan, lambda p=product, t=tokens: p.multiply(t, dtype=torch.bfloat16)
            )
            whole_s = time_launch(plan, lambda p=product, x=x: p(x))
            for arm, seconds in ((layout, alone_s), (f"{layout} + quantize", whole_s)):
                rows.append(_row(arm, shape, x, seconds, num_bytes))
        for row in rows[-5:]:
            row["x_bf16"] = dense_s / row["seconds"]
            row["share_of_copy"] = row["gb_per_s"] / copy_gb_per_s
            print(
                f"decode  {shape!s:<16} batch {batch:<4}{row['arm']:<18}"
                f"{row['seconds'] * 1e6:>9.1f} us{row['gb_per_s']:>8.0f} GB/s"
                f"{row['share_of_copy']:>7.2f} of copy{row['x_bf16']:>7.2f} x bf16"
            )
    return rows


def time_prefill(plan: Plan, shape: tuple[int, int]) -> list[Row]:
    """One prompt: int8 tensor cores beside bfloat16."""
    dense = torch.randn(shape, device=plan.device, dtype=torch.bfloat16)
    x = torch.randn(plan.prompt_tokens, shape[1], device=plan.device, dtype=torch.bfloat16)
    dense_s = time_launch(plan, lambda: F.linear(x, dense))
    rows = [_row("bf16", shape, x, dense_s, dense.nbytes)]
    product = _product(shape, "bits2", plan.device)
    tokens = product.quantize(x)
    for arm, call in (
        ("bits2", lambda: product.multiply(tokens, dtype=torch.bfloat16)),
        ("bits2 + quantize", lambda: product(x)),
    ):
        num_bytes = product.codes.nbytes + product.factor.nbytes
        rows.append(_row(arm, shape, x, time_launch(plan, call), num_bytes))
    for row in rows:
        row["x_bf16"] = dense_s / row["seconds"]
        print(
            f"prefill {shape!s:<16} tokens {len(x):<5}{row['arm']:<18}"
            f"{row['tflop_per_s']:>9.1f} TFLOP/s{row['x_bf16']:>7.2f} x bf16"
        )
    return rows


def time_engine(plan: Plan) -> list[Row]:
    """Decoding steps of a whole random model, launch by launch and as CUDA graphs."""
    from trilith.kernels import PackedLinear
    from trilith.runtime import StaticDecoder

    with torch.device(plan.device):
        model = Transformer(
            plan.model,
            lambda num_in, num_out: PackedLinear(
                _weight((num_out, num_in)), activation_bits=8, device=plan.device
            ),
        ).eval()
    rows = []
    for captures in (False, True) if plan.device.type == "cuda" else (False,):
        decoder = StaticDecoder(model, captures=captures)
        cache = decoder.new_cache(batch_size=1, capacity=32 + 2 * plan.num_steps)
        token_B = torch.ones(1, dtype=torch.long, device=plan.device)
        decoder.prefill(token_B[:, None], cache=cache)
        seconds = [_time_steps(decoder, cache, token_B, plan.num_steps) for _ in range(2)][-1]
        name = "CUDA graph" if captures else "single launches"
        rows.append({"arm": name, "batch": 1, "decode_tokens_per_s": plan.num_steps / seconds})
        print(
            f"engine  {plan.model.width} x {plan.model.num_layers} layers, head in float32, ",
            end="",
        )
        print(f"{name}: {rows[-1]['decode_tokens_per_s']:.1f} tokens/s")
    return rows


def _time_steps(decoder: Any, cache: Any, token_B: torch.Tensor, num_steps: int) -> float:
    """Seconds of some greedy steps."""
    _synchronize(token_B.device)
    start = time.perf_counter()
    for _ in range(num_steps):
        token_B = decoder.step(token_B, cache=cache).argmax(-1)
    _synchronize(token_B.device)
    return time.perf_counter() - start


def time_launch(plan: Plan, call: Callable[[], Any]) -> float:
    """Median seconds of a call with a cold L2 cache, after calls that compile and tune."""
    for _ in range(1 if plan.repeats == 1 else 3):
        call()
    _synchronize(plan.device)
    if plan.device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=plan.device)
    samples = []
    for _ in range(plan.repeats):
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start_event.record()
        call()
        end_event.record()
        samples.append((start_event, end_event))
    _synchronize(plan.device)
    return median(start.elapsed_time(end) for start, end in samples) / 1e3


def draw_roofline(content: Row, path: Path) -> None:
    """Draw operations a second over operations a byte, below what memory and tensor cores allow."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    points = [row for row in content["decode"] + content["prefill"] if "+" not in row["arm"]]
    intensities = sorted({row["flop_per_byte"] for row in points})
    roof = [content["copy_gb_per_s"] * intensity / 1e3 for intensity in intensities]
    axes.plot(intensities, roof, color="0.5", label="copy bandwidth")
    for name, tflops in _peaks(content["hardware"]["device"]).items():
        axes.axhline(tflops, color="0.7", linestyle="--")
        axes.annotate(f"{name} peak, data sheet", (intensities[0], tflops))
    for arm in sorted({row["arm"] for row in points}):
        mine = [row for row in points if row["arm"] == arm]
        places = [row["flop_per_byte"] for row in mine], [row["tflop_per_s"] for row in mine]
        axes.scatter(*places, s=14, label=arm)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s")
    axes.set_title(content["hardware"]["device"])
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.hashsalt": "gpu", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _peaks(device: str) -> dict[str, float]:
    """Peak TFLOP/s of a GPU in the table; nothing for others."""
    try:
        bf16 = device_named(device).peak_tflops
    except ValueError:
        return {}
    return {"bf16": bf16, "int8": _INT8_SPEEDUP * bf16}


def _row(
    arm: str, shape: tuple[int, int], x: torch.Tensor, seconds: float, weight_bytes: int
) -> Row:
    num_out, num_in = shape
    item_bytes = x.element_size() if arm == "bf16" else 1
    moved = weight_bytes + len(x) * (num_in * item_bytes + num_out * x.element_size())
    flop = 2 * len(x) * num_out * num_in
    return {
        "arm": arm,
        "shape": shape,
        "tokens": len(x),
        "seconds": seconds,
        "gb_per_s": moved / seconds / 1e9,
        "tflop_per_s": flop / seconds / 1e12,
        "flop_per_byte": flop / moved,
    }


def _weight(shape: tuple[int, int]) -> PackedWeight:
    codes = torch.randint(0, 3, shape, dtype=torch.uint8, device="cpu")
    weight = QuantizedWeight(codes, torch.full((1, 1), 0.02, device="cpu"))
    return pack_weight(weight, grid=GRIDS["ternary"], codec=CODECS["base3"])


def _product(shape: tuple[int, int], layout: Any, device: torch.device) -> Any:
    # Triton is there on GPUs alone, and reads TRITON_INTERPRET when it is imported.
    from trilith.kernels.triton_product import TritonProduct

    return TritonProduct(_weight(shape), layout=layout).to(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
