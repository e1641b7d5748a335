"""`trilith bench`: how fast a packed model reads a prompt and writes, by batch, length, threads."""

import argparse
import itertools
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trilith.cli.generation import add_engine_options, load_engine
from trilith.cli.table import format_table


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bench", help="measure the speed of a packed model")
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    several = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--prompt-tokens", default=[128], help="default 128", **several)
    parser.add_argument("--batch", default=[1], help="sequences at once; default 1", **several)
    parser.add_argument("--threads", help="CPU threads; default: as torch chooses", **several)
    parser.add_argument("--decode-tokens", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default 5")
    add_engine_options(parser)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Time all combinations; print a table of medians."""
    import torch

    from trilith.files import write_json
    from trilith.hardware import device_name
    from trilith.kernels import available_isas

    threads = options.threads or [torch.get_num_threads()]
    if min(threads) < 1:
        raise ValueError(f"--threads={min(threads)} must be at least 1")
    engine = load_engine(options, context=max(options.prompt_tokens) + options.decode_tokens)
    rows = _measure(engine, options, threads)
    hardware: dict[str, Any] = {
        "device": device_name(engine.device),
        "kernels": _kernels(engine),
        "instruction_sets": list(available_isas()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(format_table(_table(rows)))
    print(f"  medians of {options.repeats}, after a warm-up; {options.file.name}")
    print(f"  {hardware['device']}, kernels: {hardware['kernels']}")
    if engine.stream is not None:
        times = engine.stream.times
        print(
            f"  layers streamed: {times.read_s:.2f} s of reading, {times.compute_s:.2f} s of "
            f"computing, {times.wait_s:.2f} s of waiting; "
            f"{times.overlap:.0%} of the reading ran beside"
        )
        hardware["stream_seconds"] = asdict(times)
    if options.json:
        model = {"file": options.file.name, "file_bytes": options.file.stat().st_size}
        write_json(options.json, {"hardware": hardware, "model": model, "rows": rows})
    return 0


def _kernels(engine: Any) -> str:
    if engine.static is not None:
        return "torch, one CUDA graph a token"
    if engine.decoder is None:
        return "torch"
    prompts = "" if engine.has_one_path else ", torch for prompts"
    return f"native, one call a token{prompts}"


def _measure(engine: Any, options: argparse.Namespace, threads: list[int]) -> list[dict[str, Any]]:
    import torch

    from trilith.evaluation import SpeedConfig, measure_speed

    combinations = itertools.product(threads, options.batch, options.prompt_tokens)
    # All are checked before the first takes its minutes.
    timed = [
        (number, SpeedConfig(prompt, options.decode_tokens, options.repeats, batch))
        for number, batch, prompt in combinations
    ]
    rows = []
    before = torch.get_num_threads()
    try:
        for number, config in timed:
            torch.set_num_threads(number)
            rows.append(
                {
                    "threads": number,
                    "batch_size": config.batch_size,
                    "prompt_tokens": config.prompt_tokens,
                    "decode_tokens": config.decode_tokens,
                    "repeats": config.repeats,
                    **measure_speed(engine, config)._asdict(),
                }
            )
    finally:
        torch.set_num_threads(before)
    return rows


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
    counts = ("threads", "batch_size", "prompt_tokens", "decode_tokens")
    speeds = ("prefill_tokens_per_s", "decode_tokens_per_s")
    head = ["threads", "batch", "prompt", "decoded", "prefill tokens/s", "decode tokens/s"]
    cells = [
        [*(str(row[key]) for key in counts), *(f"{row[key]:,.1f}" for key in speeds)]
        for row in rows
    ]
    return [head, *cells]
