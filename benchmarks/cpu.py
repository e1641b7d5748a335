"""The CPU engine beside llama.cpp, a fork of it, onnxruntime and the memory, all in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/cpu.py

Torch's threads must not spin beside the kernels' own; llama.cpp waits as it likes. Batch 1, random
ternary weights of a shape, whole models: embedding, norms, attention, head and greedy choice for
ours; llama.cpp without a choice; onnxruntime's projections and head alone. A round times each arm
once; samples during which other processes took more than 6% of a core are thrown away (all are
kept, and the table says so, where none is left). Prints medians and writes them to
benchmarks/results/cpu-<date>.json. llama.cpp and the files are made below runs/anchors once (some
GB, half an hour).
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

from cpu_anchors import IkLlamaCpp, LlamaCpp, read_bandwidth
from cpu_onnx import OnnxRuntime
from quiet import watch
from random_models import SHAPES, write_packed_model
from trilith.evaluation import SpeedConfig, measure_speed
from trilith.evaluation.speed import Speed
from trilith.hardware import device_name, prepare_cpu
from trilith.kernels import chosen_isa
from trilith.packed import PackConfig
from trilith.runtime import Engine

MAX_OTHER_CORES = 0.06
FOLDER, RESULTS = Path("runs/anchors"), Path(__file__).parent / "results"
OURS = ("bits2", "base3")
ANCHORS = (LlamaCpp.name, IkLlamaCpp.name, "onnxruntime")
# Features of a row of embedding and head that share a scale.
GROUP_SIZE = 128
# Reads of the memory a round, a fifth of a second each at most.
READS = 5


@dataclass
class Arm:
    """One thing that is timed, and its samples."""

    name: str
    shape: str
    measure: Callable[[], Speed]
    bytes_per_token: int = 0
    samples: list[tuple[Speed, float]] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """Medians of the quiet samples; of all where there is none."""
        quiet = [speed for speed, other in self.samples if other <= MAX_OTHER_CORES]
        used = quiet or [speed for speed, _ in self.samples]
        prefill, decode = (median(values) for values in zip(*used, strict=True))
        return {
            "shape": self.shape,
            "arm": self.name,
            "prefill_tokens_per_s": prefill,
            "decode_tokens_per_s": decode,
            "bytes_per_token": self.bytes_per_token,
            "quiet_samples": len(quiet),
            "samples": len(self.samples),
        }


def main() -> None:
    """Prepare all arms, time them in turns, print the table and write the file."""
    options = parse()
    prepare_cpu(options.threads)
    FOLDER.mkdir(parents=True, exist_ok=True)
    skipped: dict[str, str] = {}
    arms = [arm for shape in options.shapes for arm in arms_of(shape, options, skipped)]
    read = read_bandwidth(FOLDER)
    print(f"timing {len(arms)} arms, {options.rounds} rounds", flush=True)
    bandwidths: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        bandwidths += [watch(partial(read, options.threads)) for _ in range(READS)]
        for arm in arms:
            arm.samples.append(watch(arm.measure))
    rows = [arm.row() for arm in arms]
    quiet = [speed for speed, other in bandwidths if other <= MAX_OTHER_CORES]
    bandwidth = median(quiet or [speed for speed, _ in bandwidths])
    content = {
        "hardware": hardware(bandwidth, options.threads),
        "settings": {key: value for key, value in vars(options).items() if key != "json"},
        "skipped": skipped,
        "rows": rows,
        "ratios": ratios(rows, "1.1b", bandwidth),
        "ratios_by_shape": {shape: ratios(rows, shape, bandwidth) for shape in options.shapes},
    }
    print_table(content)
    path = options.json or RESULTS / f"cpu-{date.today().isoformat()}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=["1.1b", "125m"])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--embedding", default="int8", help="precision of embedding and head")
    parser.add_argument("--anchors", nargs="*", choices=ANCHORS, default=list(ANCHORS))
    parser.add_argument("--json", type=Path, help="write here instead of below results")
    return parser.parse_args()


def arms_of(shape: str, options: argparse.Namespace, skipped: dict[str, str]) -> list[Arm]:
    """Make the arms of a shape; those that cannot run are named in `skipped`."""
    arms = [our_arm(shape, codec, options) for codec in OURS]
    lengths = {"prompt": options.prompt_tokens, "decode": options.decode_tokens}
    for anchor in (LlamaCpp, IkLlamaCpp):
        if anchor.name not in options.anchors:
            continue
        try:
            llama = anchor(FOLDER)
            for name in llama.quantizations:
                path = llama.model(shape, name)
                timed = partial(llama.measure, path, threads=options.threads, **lengths)
                arms.append(Arm(f"{llama.name} {name}", shape, timed))
        except (RuntimeError, ImportError, OSError) as error:
            skipped[anchor.name] = str(error)
    if "onnxruntime" in options.anchors:
        try:
            onnx = OnnxRuntime(SHAPES[shape], threads=options.threads)
            arms.append(Arm("onnxruntime", shape, partial(onnx.measure, **lengths)))
        except ImportError as error:
            skipped["onnxruntime"] = f"{error}; pip install 'onnxruntime>=1.28' onnx"
    return arms


def our_arm(shape: str, codec: str, options: argparse.Namespace) -> Arm:
    """Load our engine with a codec; its file is written if it is not there."""
    path = FOLDER / f"{shape}-{codec}-{options.embedding}.safetensors"
    if not path.is_file():
        group_size = GROUP_SIZE if options.embedding in ("int4", "int3") else None
        pack = PackConfig(codec, options.embedding, group_size=group_size)
        write_packed_model(SHAPES[shape], path, pack=pack)
    engine = Engine.load(path)
    timed = partial(our_speed, engine, options.prompt_tokens, options.decode_tokens)
    return Arm(f"trilith {codec}", shape, timed, read_bytes(engine))


def our_speed(engine: Engine, num_prompt: int, num_decode: int) -> Speed:
    """Time a prompt, and greedy decoding after one token, as the anchors do."""
    prefill = SpeedConfig(num_prompt, 1, repeats=1, batch_size=1)
    decode = SpeedConfig(1, num_decode, repeats=1, batch_size=1)
    return Speed(
        measure_speed(engine, prefill).prefill_tokens_per_s,
        measure_speed(engine, decode).decode_tokens_per_s,
    )


def read_bytes(engine: Engine) -> int:
    """Bytes of weights that a decoding step reads: projections, and the head as it is stored."""
    tied = engine.config.tied_head
    head = "embedding" if tied else "head"
    stored = [t for name, t in engine.file.tensors.items() if name.startswith(f"{head}.")]
    codes = [b for n, b in engine.model.named_buffers() if n.endswith(("codes", "factor"))]
    return sum(tensor.nbytes for tensor in (*stored, *codes))


def hardware(bandwidth: float, threads: int) -> dict[str, object]:
    """What the figures hold for."""
    isa = chosen_isa()
    return {
        "device": device_name(),
        "python": platform.python_version(),
        "kernels": isa.name if isa else "torch",
        "threads": threads,
        "read_bytes_per_s": bandwidth,
        "read_method": "read_bandwidth.c: 64-bit sums over 512 MiB in large pages, all threads",
    }


def ratios(rows: list[dict], shape: str, bandwidth: float) -> dict[str, float | None]:
    """Our better layout against each anchor; None where a side was not timed."""
    found = {row["arm"]: row for row in rows if row["shape"] == shape}
    ours = [row for name, row in found.items() if name.startswith("trilith")]
    if not ours:
        return {}
    best = {key: max(row[f"{key}_tokens_per_s"] for row in ours) for key in ("decode", "prefill")}

    def against(key: str, *names: str) -> float | None:
        rows = [found[name] for name in names if name in found]
        return best[key] / max(row[f"{key}_tokens_per_s"] for row in rows) if rows else None

    # The same share for both layouts is asked for: the lower one counts.
    shares = [row["decode_tokens_per_s"] * row["bytes_per_token"] / bandwidth for row in ours]
    fork = [f"{IkLlamaCpp.name} {name}" for name in IkLlamaCpp.quantizations]
    return {
        "decode_vs_tq2_0": against("decode", "llama.cpp TQ2_0"),
        "decode_vs_tq1_0": against("decode", "llama.cpp TQ1_0"),
        "decode_vs_ik_llama": against("decode", *fork),
        "decode_vs_onnxruntime": against("decode", "onnxruntime"),
        "decode_vs_bandwidth": min(shares),
        "prefill_vs_tq2_0": against("prefill", "llama.cpp TQ2_0"),
        "prefill_vs_q4_0": against("prefill", "llama.cpp Q4_0"),
        "prefill_vs_q8_0": against("prefill", "llama.cpp Q8_0"),
        "prefill_vs_ik_llama": against("prefill", *fork),
    }


def print_table(content: dict) -> None:
    """Print the rows and the ratios."""
    print(f"{'shape':<8}{'arm':<22}{'prefill tokens/s':>18}{'decode tokens/s':>17}{'quiet':>8}")
    for row in content["rows"]:
        quiet = f"{row['quiet_samples']}/{row['samples']}"
        speeds = f"{row['prefill_tokens_per_s']:>18.0f}{row['decode_tokens_per_s']:>17.1f}"
        print(f"{row['shape']:<8}{row['arm']:<22}{speeds}{quiet:>8}")
    for shape, values in content["ratios_by_shape"].items():
        shown = (f"{name} {value:.2f}" for name, value in values.items() if value is not None)
        print(f"{shape}: {', '.join(shown)}")
    for name, reason in content["skipped"].items():
        print(f"without {name}: {reason}")
    about = content["hardware"]
    gb = about["read_bytes_per_s"] / 1e9
    print(f"{about['threads']} threads, {about['kernels']}, reads {gb:.1f} GB/s, {about['device']}")


if __name__ == "__main__":
    main()
