"""Speed of a model as the engine runs it: tokens per second of prefill and decoding, batch 1."""

import time
from statistics import median
from typing import NamedTuple

import torch

from trilith.evaluation.config import EvaluateConfig
from trilith.runtime import Engine


class Speed(NamedTuple):
    """Medians of the repeats."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@torch.inference_mode()
def measure_speed(engine: Engine, config: EvaluateConfig) -> Speed:
    """Time a prompt and a greedy continuation of the configured lengths, after one warm-up.

    Raises:
        ValueError: prompt and continuation do not fit the model's context.
    """
    total = config.prompt_tokens + config.decode_tokens
    if total > engine.config.context:
        raise ValueError(
            f"evaluate.prompt_tokens={config.prompt_tokens} and decode_tokens="
            f"{config.decode_tokens} exceed model.context={engine.config.context}; lower them"
        )
    prompt = torch.arange(config.prompt_tokens)[None] % engine.config.vocab_size
    _time_once(engine, prompt, config.decode_tokens)
    samples = [_time_once(engine, prompt, config.decode_tokens) for _ in range(config.repeats)]
    prefill_s = median(sample[0] for sample in samples)
    decode_s = median(sample[1] for sample in samples)
    return Speed(config.prompt_tokens / prefill_s, config.decode_tokens / decode_s)


def _time_once(engine: Engine, prompt: torch.Tensor, num_new: int) -> tuple[float, float]:
    cache = engine.new_cache(batch_size=1, capacity=prompt.shape[1] + num_new)
    start = time.perf_counter()
    token = engine.prefill(prompt, cache=cache).argmax(-1)
    prefilled = time.perf_counter()
    for _ in range(num_new):
        token = engine.decode_one_token(token, cache=cache).argmax(-1)
    return prefilled - start, time.perf_counter() - prefilled
