"""Speed of a packed model: tokens per second of prefill and of decoding."""

import time
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch

from trilith.runtime import Engine, most_likely


@dataclass(frozen=True)
class SpeedConfig:
    """What is timed: `batch_size` prompts at once and their continuations, `repeats` times."""

    prompt_tokens: int
    decode_tokens: int
    repeats: int
    batch_size: int

    def __post_init__(self) -> None:
        for key in ("prompt_tokens", "decode_tokens", "repeats", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")


class Speed(NamedTuple):
    """Medians of the repeats, over the tokens of all sequences."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def measure_speed(engine: Engine, config: SpeedConfig) -> Speed:
    """Time prompts and greedy continuations of the configured lengths, after one warm-up.

    Raises:
        ValueError: prompt and continuation do not fit the model's context.
    """
    total = config.prompt_tokens + config.decode_tokens
    context = engine.config.context
    if total > context:
        raise ValueError(
            f"prompt_tokens={config.prompt_tokens} and decode_tokens={config.decode_tokens} "
            f"exceed the context of {context} tokens of model {engine.config.name}; lower them"
        )
    prompt_T = torch.arange(config.prompt_tokens, device=engine.device) % engine.config.vocab_size
    prompt_BT = prompt_T.expand(config.batch_size, -1).contiguous()
    _time_once(engine, prompt_BT, config.decode_tokens)
    samples = [_time_once(engine, prompt_BT, config.decode_tokens) for _ in range(config.repeats)]
    prefill_s = median(sample[0] for sample in samples)
    decode_s = median(sample[1] for sample in samples)
    return Speed(
        config.batch_size * config.prompt_tokens / prefill_s,
        config.batch_size * config.decode_tokens / decode_s,
    )


def _time_once(engine: Engine, prompt_BT: torch.Tensor, num_new: int) -> tuple[float, float]:
    num_sequences, num_prompt = prompt_BT.shape
    cache = engine.new_cache(batch_size=num_sequences, capacity=num_prompt + num_new)
    start = _now(engine)
    token_B = most_likely(engine.prefill(prompt_BT, cache=cache))
    prefilled = _now(engine)
    for _ in range(num_new):
        token_B = most_likely(engine.decode_one_token(token_B, cache=cache))
    return prefilled - start, _now(engine) - prefilled


def _now(engine: Engine) -> float:
    """Seconds of a clock, once the device has done all that it was given."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.perf_counter()
