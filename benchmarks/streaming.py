"""Layer streaming: seconds to read a block and to run it, and how much of the reading runs beside.

    python benchmarks/streaming.py                 # 125M parameters
    python benchmarks/streaming.py --model 1.1b

The model's weights are random. "cold" drops the file from the system's page cache before each pass
over the layers; what the process then had from the disk is counted. Both states take turns.
"""

import argparse
import ctypes
import itertools
import json
import mmap
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from random_models import SHAPES, write_packed_model
from trilith.hardware import device_name, prepare_cpu
from trilith.packed import PackConfig, PackedFile, build_packed_block
from trilith.runtime import Engine
from trilith.runtime.layer_stream import StreamTimes

ROOT = Path(__file__).parents[1]
_STATES = ("page cache", "cold")


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="125m")
    parser.add_argument("--codec", default="bits2")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/streaming")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/streaming.json")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    path = options.folder / f"{options.model}-{options.codec}.safetensors"
    if not path.is_file():
        write_packed_model(SHAPES[options.model], path, pack=PackConfig(options.codec, "int8"))
    rows = _measure(path, options)
    print(
        f"{'from':<12}{'pass of':<14}{'read':>10}{'run':>10}{'wait':>10}{'overlap':>9}{'disk':>10}"
    )
    for row in rows:
        cells = "".join(f"{row[key]:>7.2f} ms" for key in ("read_ms", "run_ms", "wait_ms"))
        disk = f"{row['disk_bytes'] / 1e6:>7.1f} MB"
        print(f"{row['state']:<12}{row['pass']:<14}{cells}{row['overlap']:>9.0%}{disk}")
    print(f"ms a block, medians of passes; {options.threads} threads, {device_name()}")
    settings = {"threads": options.threads, "repeats": options.repeats, "codec": options.codec}
    content = json.loads(options.json.read_text()) if options.json.is_file() else {}
    hardware = {"device": device_name(), "torch": torch.__version__}
    content |= {"hardware": hardware | {"load_average": os.getloadavg()[0]}}
    model = {"file_bytes": path.stat().st_size, "num_layers": SHAPES[options.model].num_layers}
    content[options.model] = {"settings": settings, "model": model, "rows": rows}
    options.json.write_text(json.dumps(content, indent=2) + "\n")


def _measure(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for reading alone, for the pass of a prompt and of a new token, the states in turn."""
    engine = Engine.load(path, layers="streamed")
    assert engine.stream is not None
    prompt_BT = torch.arange(options.prompt_tokens)[None] % engine.config.vocab_size
    capacity = options.prompt_tokens + options.decode_tokens
    kinds = "reading alone", f"{options.prompt_tokens} tokens", "1 token"
    samples: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    # The first of each state warms up.
    for number, state in itertools.product(range(options.repeats + 1), _STATES):
        cache = engine.new_cache(batch_size=1, capacity=capacity)
        alone = [_alone(engine.file, state)]
        prompts = [_one_pass(engine, partial(engine.prefill, prompt_BT, cache=cache), state)]
        step = partial(engine.decode_one_token, prompt_BT[0, :1], cache=cache)
        tokens = [_one_pass(engine, step, state) for _ in range(options.decode_tokens)]
        for kind, passes in zip(kinds, (alone, prompts, tokens), strict=True):
            samples[state, kind] += passes if number else []
    engine.stream.close()
    order = itertools.product(_STATES, kinds)
    return [{"state": s, "pass": kind, **_medians(samples[s, kind])} for s, kind in order]


def _one_pass(engine: Engine, run: Callable[[], Any], state: str) -> dict[str, float]:
    """Milliseconds of a block in one pass over all of them; the first is read before it begins."""
    stream = engine.stream
    assert stream is not None
    if state == "cold":
        _drop(engine.file)
    stream.times, before = StreamTimes(), _disk_bytes()
    run()
    times, each_ms = stream.times, 1000 / len(stream)
    return {
        "read_ms": times.read_s * each_ms,
        "run_ms": times.compute_s * each_ms,
        "wait_ms": times.wait_s * each_ms,
        "overlap": times.overlap,
        "disk_bytes": _disk_bytes() - before,
    }


def _alone(file: PackedFile, state: str) -> dict[str, float]:
    """Milliseconds to read a block while nothing else of ours runs."""
    if state == "cold":
        _drop(file)
    num_layers, start, before = file.manifest.model.num_layers, perf_counter(), _disk_bytes()
    for layer in range(num_layers):
        build_packed_block(file, layer)
    read_ms = 1000 * (perf_counter() - start) / num_layers
    nothing = {"run_ms": 0.0, "wait_ms": read_ms, "overlap": 0.0}
    return {"read_ms": read_ms, **nothing, "disk_bytes": _disk_bytes() - before}


def _drop(file: PackedFile) -> None:
    """Let go of the blocks' bytes, here and in the page cache; what is still mapped stays there."""
    codes = [tensor for name, tensor in file.tensors.items() if name.endswith(".codes")]
    start = min(tensor.data_ptr() for tensor in codes) // mmap.PAGESIZE * mmap.PAGESIZE
    length = max(tensor.data_ptr() + tensor.nbytes for tensor in codes) - start
    # At once and not tensor by tensor: a page between two would keep its neighbours in the cache.
    arguments = ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED
    assert ctypes.CDLL(None).madvise(*arguments) == 0, "madvise failed"
    opened = os.open(file.path, os.O_RDONLY)
    try:
        os.fsync(opened)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(opened)


def _disk_bytes() -> int:
    """Bytes that this process has had from a disk so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def _medians(passes: list[dict[str, float]]) -> dict[str, float]:
    return {key: median(each[key] for each in passes) for key in passes[0]}


if __name__ == "__main__":
    main()
