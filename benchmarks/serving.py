"""Throughput of the decoding loop by the number of clients: all at once against one by one.

    python benchmarks/serving.py data/packed/ternary.safetensors --clients 1 4 8 --threads 1

Requests go straight to the loop, so that HTTP is left out. Tokens per second of the clock, and of
this process's CPU time, which other programs on the machine disturb less.
"""

import argparse
import queue
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trilith.cli.table import format_table
from trilith.files import write_json
from trilith.hardware import device_name
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.serving import Batcher, Order
from trilith.tokens import Tokenizer

GREEDY = SamplingConfig(0.0, None, None, 1.0, 0)


def main() -> None:
    """Measure each number of clients and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8], metavar="N")
    parser.add_argument("--prompt-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engine = Engine.load(options.file)
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    rows = []
    for num_clients in options.clients:
        orders = _orders(num_clients, options, engine.config.vocab_size)
        serial, together = (
            _tokens_per_s(engine, tokenizer, orders, num_running=number, repeats=options.repeats)
            for number in (1, num_clients)
        )
        rows.append({"clients": num_clients, "serial": serial, "together": together})
    cells = [
        [str(row["clients"]), kind]
        + [f"{row[key][at]:,.0f}" for key in ("serial", "together")]
        + [f"{row['together'][at] / row['serial'][at]:.2f}"]
        for row in rows
        for at, kind in enumerate(("clock", "CPU time"))
    ]
    print(
        format_table(
            [["clients", "seconds of", "one by one, tokens/s", "together", "ratio"], *cells]
        )
    )
    print(f"  {options.threads} threads, {device_name(engine.device)}; {options.file.name}")
    if options.json:
        write_json(options.json, {"hardware": device_name(engine.device), "rows": rows})


def _orders(num_clients: int, options: argparse.Namespace, vocab_size: int) -> list[Order]:
    """Prompts of several lengths, none the beginning of another."""
    config = GenerateConfig(options.new_tokens, (), GREEDY)
    return [
        Order(tuple((client * 7 + i) % vocab_size for i in range(options.prompt_tokens)), config)
        for client in range(num_clients)
    ]


def _tokens_per_s(
    engine: Engine, tokenizer: Tokenizer, orders: list[Order], *, num_running: int, repeats: int
) -> list[float]:
    """By the clock, and by CPU time; medians after a warm-up."""
    batcher = Batcher(engine, tokenizer, num_running=num_running)
    try:
        times = [_time_once(batcher, orders) for _ in range(repeats + 1)][1:]
    finally:
        batcher.close()
    num_tokens = sum(order.generation.max_new_tokens for order in orders)
    return [num_tokens / median(seconds) for seconds in zip(*times, strict=True)]


def _time_once(batcher: Batcher, orders: list[Order]) -> tuple[float, float]:
    """Seconds of the clock and of the CPU until all have their last token."""
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start, cpu_start = time.perf_counter(), time.process_time()
    for order in orders:
        batcher.submit(order, lambda news: ends.put(news) if news.finish_reason else None)
    for _ in orders:
        ends.get()
    return time.perf_counter() - start, time.process_time() - cpu_start


if __name__ == "__main__":
    main()
