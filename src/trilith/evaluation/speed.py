"""Speed of a model: tokens per second of prefill and of decoding, batch 1."""

import time
from statistics import median
from typing import NamedTuple

import torch

from trilith.evaluation.config import EvaluateConfig
from trilith.model import KVCache, Transformer


class Speed(NamedTuple):
    """Medians of the repeats."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@torch.inference_mode()
def measure_speed(model: Transformer, config: EvaluateConfig) -> Speed:
    """Time a prompt and a greedy continuation of the configured lengths, after one warm-up.

    Raises:
        ValueError: prompt and continuation do not fit the model's context.
    """
    total = config.prompt_tokens + config.decode_tokens
    if total > model.config.context:
        raise ValueError(
            f"evaluate.prompt_tokens={config.prompt_tokens} and decode_tokens="
            f"{config.decode_tokens} exceed model.context={model.config.context}; lower them"
        )
    prompt = torch.arange(config.prompt_tokens)[None] % model.config.vocab_size
    _time_once(model, prompt, config.decode_tokens)
    samples = [_time_once(model, prompt, config.decode_tokens) for _ in range(config.repeats)]
    prefill_s = median(sample[0] for sample in samples)
    decode_s = median(sample[1] for sample in samples)
    return Speed(config.prompt_tokens / prefill_s, config.decode_tokens / decode_s)


def _time_once(model: Transformer, prompt: torch.Tensor, num_new: int) -> tuple[float, float]:
    cache = KVCache(model.config, batch_size=1, capacity=prompt.shape[1] + num_new)
    start = time.perf_counter()
    token = model.head(model.hidden(prompt, cache)[:, -1:]).argmax(-1)
    prefilled = time.perf_counter()
    for _ in range(num_new):
        token = model(token, cache).argmax(-1)
    return prefilled - start, time.perf_counter() - prefilled
