"""From logits to the next token. Axes: B batch, V vocabulary, S tokens seen so far."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Beyond these float32 logits lose their order, or become NaN.
_LEAST_TEMPERATURE = 1e-30
_LARGEST_PENALTY = 1e6


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens, or None for all.
        top_p: only the most likely tokens up to and with the one that crosses this probability, or
            None for all.
        repetition_penalty: makes tokens seen before less likely; 1 has no effect.
        seed: of the draws, -2^63 to 2^64 - 1.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    seed: int

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _LEAST_TEMPERATURE <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature} must be 0, or finite and at least "
                f"{_LEAST_TEMPERATURE}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1; leave it out to keep all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 1 / _LARGEST_PENALTY <= self.repetition_penalty <= _LARGEST_PENALTY:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be in "
                f"{1 / _LARGEST_PENALTY}..{_LARGEST_PENALTY}; 1 has no effect"
            )
        if self.seed not in range(-(2**63), 2**64):
            raise ValueError(f"seed={self.seed} must be in -2^63..2^64-1")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                f"temperature=0 takes the most likely token, so top_k={self.top_k} and "
                f"top_p={self.top_p} have no effect; leave them out or raise the temperature"
            )


class Sampler:
    """Draws tokens by one config, with a generator of its own: same seed, same tokens."""

    def __init__(self, config: SamplingConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.generator = torch.Generator(device).manual_seed(config.seed)

    def draw(self, logits_BV: Tensor, *, seen_BS: Tensor) -> Tensor:
        """Return the next token of each sequence: int64 [B]."""
        config = self.config
        logits_BV = penalize_repetition(
            logits_BV.float(), seen_BS=seen_BS, penalty=config.repetition_penalty
        )
        if config.temperature == 0:
            return most_likely(logits_BV)
        # Largest logit first to zero: a tiny temperature must not overflow.
        logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / config.temperature
        if config.top_k is not None:
            logits_BV = keep_top_k(logits_BV, config.top_k)
        if config.top_p is not None:
            logits_BV = keep_top_p(logits_BV, config.top_p)
        probabilities_BV = logits_BV.softmax(dim=-1)
        return torch.multinomial(probabilities_BV, 1, generator=self.generator).squeeze(1)


def most_likely(logits_BV: Tensor) -> Tensor:
    """Return the first of the likeliest tokens of each sequence: int64 [B].

    On the CPU by NumPy, which reads float32 several times as fast as torch's `argmax`.
    """
    if logits_BV.is_cpu and logits_BV.dtype == torch.float32:
        return torch.from_numpy(logits_BV.detach().numpy().argmax(axis=-1))
    return logits_BV.argmax(dim=-1)


def penalize_repetition(logits_BV: Tensor, *, seen_BS: Tensor, penalty: float) -> Tensor:
    """Lower the logits of tokens seen: positive ones divided, negative ones multiplied.

    CTRL (arXiv 1909.05858) divides always, which makes tokens with negative logits more likely.
    """
    if penalty == 1:
        return logits_BV
    seen_logits_BS = logits_BV.gather(1, seen_BS)
    lowered_BS = torch.where(seen_logits_BS > 0, seen_logits_BS / penalty, seen_logits_BS * penalty)
    return logits_BV.scatter(1, seen_BS, lowered_BS)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row to -inf; of equal ones, exactly k stay."""
    top = logits_BV.topk(min(k, logits_BV.shape[-1]), dim=-1)
    return torch.full_like(logits_BV, -torch.inf).scatter(-1, top.indices, top.values)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the most likely tokens until their probabilities reach p; the one that crosses stays."""
    if p >= 1:
        return logits_BV
    ordered = logits_BV.sort(dim=-1, descending=True, stable=True)
    probabilities_BV = ordered.values.softmax(dim=-1)
    before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
    kept_BV = ordered.values.masked_fill(before_BV >= p, -torch.inf)
    return torch.empty_like(logits_BV).scatter(-1, ordered.indices, kept_BV)
