"""Runtime: prefill and decoding of packed files, interleaved in one run.

    python benchmarks/runtime.py data/packed/dense.safetensors data/packed/ternary.safetensors

Batch 1, with the kernels that TRILITH_KERNELS chooses. Prints a table of medians, with the first
file as the yardstick.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import median

from trilith.evaluation import SpeedConfig, measure_speed
from trilith.hardware import device_name, prepare_cpu
from trilith.runtime import Engine


def main() -> None:
    """Time all files in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    once = SpeedConfig(options.prompt_tokens, options.decode_tokens, repeats=1, batch_size=1)
    engines = {path.stem: Engine.load(path) for path in options.files}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(options.repeats):
        for name, engine in engines.items():
            samples[name].append(measure_speed(engine, once))
    print(f"{'model':<28}{'prefill tokens/s':>18}{'decode tokens/s':>17}{'x first':>9}")
    rows = []
    for path in options.files:
        prefill, decode = (median(values) for values in zip(*samples[path.stem], strict=True))
        row = {
            "model": path.stem,
            "file_bytes": path.stat().st_size,
            "prefill_tokens_per_s": prefill,
            "decode_tokens_per_s": decode,
        }
        rows.append(row)
        ratio = decode / float(rows[0]["decode_tokens_per_s"])
        print(f"{path.stem:<28}{prefill:>18.0f}{decode:>17.1f}{ratio:>9.2f}")
    print(f"{options.threads} threads, {device_name()}")
    if options.json:
        hardware = {"device": device_name(), "python": platform.python_version()}
        settings = {k: v for k, v in vars(options).items() if k not in ("files", "json")}
        content = {"hardware": hardware, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
