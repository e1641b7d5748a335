"""Scores against plain sums over single tokens."""

import math

import numpy as np
import torch

from trilith.evaluation import HeldOut, bits_per_byte, score_answers, score_text
from trilith.model import ModelConfig, Transformer, build_model


def models(toy: ModelConfig) -> tuple[Transformer, Transformer]:
    torch.manual_seed(0)
    return build_model(toy, None).eval(), build_model(toy, None).eval()


def plain_log_probs(model: Transformer, tokens: np.ndarray, start: int, end: int) -> torch.Tensor:
    inputs = torch.from_numpy(tokens[start:end].astype(np.int64))[None]
    return model(inputs)[0].double().log_softmax(-1)


def test_every_token_but_the_first_is_scored_once(toy: ModelConfig) -> None:
    model, reference = models(toy)
    tokens = np.random.default_rng(0).integers(0, 37, 300).astype(np.uint16)
    context = 8
    loss = agreement = kl = 0.0
    with torch.no_grad():
        for start in range(0, 299, context):
            end = min(start + context, 299)
            own = plain_log_probs(model, tokens, start, end)
            other = plain_log_probs(reference, tokens, start, end)
            for place, target in enumerate(tokens[start + 1 : end + 1]):
                loss -= float(own[place, int(target)])
                agreement += float(own[place].argmax() == other[place].argmax())
                kl += float((other[place].exp() * (other[place] - own[place])).sum())
    held_out = HeldOut(tokens, num_bytes=900, context=context)
    quality = score_text(model, reference=reference, held_out=held_out, name="toy")
    assert quality.num_tokens == 299
    assert math.isclose(quality.loss_nats, loss / 299, rel_tol=1e-5)
    assert math.isclose(quality.top1_agreement, agreement / 299, rel_tol=1e-9)
    assert math.isclose(quality.kl_nats, kl / 299, rel_tol=1e-4)


def test_a_model_agrees_with_itself(toy: ModelConfig) -> None:
    model, _ = models(toy)
    tokens = np.arange(65, dtype=np.uint16) % 37
    quality = score_text(
        model, reference=model, held_out=HeldOut(tokens, num_bytes=65, context=16), name="toy"
    )
    assert quality.top1_agreement == 1.0
    assert abs(quality.kl_nats) < 1e-6


def test_bits_per_byte_of_a_known_loss() -> None:
    # One bit a token, two tokens for eight bytes.
    assert math.isclose(bits_per_byte(math.log(2), num_tokens=2, num_bytes=8), 0.25)


def test_only_answer_tokens_count(toy: ModelConfig) -> None:
    model, _ = models(toy)
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 37, (70, 9))
    mask = generator.random((70, 9)) < 0.3
    mask[:, 0] = False
    total = 0.0
    with torch.no_grad():
        for row, counted in zip(tokens, mask, strict=True):
            log_probs = plain_log_probs(model, row, 0, 8)
            for place in np.flatnonzero(counted):
                total -= float(log_probs[place - 1, int(row[place])])
    assert math.isclose(score_answers(model, tokens, mask), total / mask.sum(), rel_tol=1e-5)
