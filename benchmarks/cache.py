"""What a cache in 16, 8 or 4 bits costs in perplexity, measured by decoding packed models.

    python benchmarks/cache.py ternary=data/packed/ternary.safetensors:data/tokens/test.bin

Each argument is NAME=MODEL:TOKENS; TOKENS is a token shard, or a text.
Sequences as long as the context are decoded token by token, so that every token reads the
cache as it is in use; the target is at most 0.5% at 8 bits and 2% at 4.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.hardware import device_name, prepare_cpu
from trilith.model import CacheConfig
from trilith.runtime import Engine
from trilith.tokens import Tokenizer

BITS = (32, 16, 8, 4)


def main() -> None:
    """Score all models with all caches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL:TOKENS")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    prepare_cpu(1)
    rows = []
    print(f"{'model':<20}{'cache bits':>11}{'perplexity':>12}{'cost':>9}{'bytes/token':>13}")
    for choice in options.models:
        name, _, places = choice.partition("=")
        model, _, text = places.partition(":")
        for row in measure(name, Path(model), Path(text), num_sequences=options.sequences):
            rows.append(row)
            print(
                f"{name:<20}{row['cache_bits']:>11}{row['perplexity']:>12.3f}"
                f"{row['cost_percent']:>8.3f}%{row['cache_bytes_per_token']:>13.1f}",
                flush=True,
            )
    if options.json:
        hardware = {"device": device_name(), "python": platform.python_version()}
        content = {"hardware": hardware, "settings": {"sequences": options.sequences}, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def measure(name: str, model: Path, text: Path, *, num_sequences: int) -> list[dict[str, Any]]:
    """Score one model with each cache."""
    rows: list[dict[str, Any]] = []
    for bits in BITS:
        engine = Engine.load(model, cache=CacheConfig(bits))
        tokens_BT = _sequences(engine, text, num_sequences)
        loss, num_bytes = _loss_nats(engine, tokens_BT)
        perplexity = math.exp(loss)
        first = rows[0]["perplexity"] if rows else perplexity
        rows.append(
            {
                "model": name,
                "cache_bits": bits,
                "num_tokens": tokens_BT[:, 1:].numel(),
                "loss_nats": loss,
                "perplexity": perplexity,
                "cost_percent": 100 * (perplexity / first - 1),
                "cache_bytes_per_token": num_bytes / tokens_BT.numel(),
            }
        )
    return rows


def _sequences(engine: Engine, text: Path, num_sequences: int) -> Tensor:
    """The first tokens of the text, as sequences [B, T] of the model's context."""
    length = engine.config.context
    if text.suffix == ".bin":
        tokens = np.fromfile(text, dtype=np.uint16, count=num_sequences * length).astype(np.int64)
    else:
        tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
        tokens = np.array(tokenizer.encode(text.read_text()[: 8 * num_sequences * length]))
    num = min(num_sequences, len(tokens) // length)
    return torch.from_numpy(tokens[: num * length]).view(num, length)


def _loss_nats(engine: Engine, tokens_BT: Tensor) -> tuple[float, int]:
    """Mean loss of all tokens but the first, and the bytes of the cache."""
    num_sequences, length = tokens_BT.shape
    cache = engine.new_cache(batch_size=num_sequences, capacity=length)
    total = 0.0
    for step_B, target_B in zip(tokens_BT.T[:-1], tokens_BT.T[1:], strict=True):
        logits_BV = engine.decode_one_token(step_B, cache=cache)
        total += float(F.cross_entropy(logits_BV, target_B, reduction="sum"))
    return total / (num_sequences * (length - 1)), cache.nbytes


if __name__ == "__main__":
    main()
