"""Sampling against plain loops over one row of probabilities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trilith.runtime import Sampler, SamplingConfig
from trilith.runtime.sampling import keep_top_k, keep_top_p, penalize_repetition

VALID: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "repetition_penalty": 1.0,
    "seed": 0,
}
LOGITS = torch.tensor([[2.0, -1.0, 0.5, 3.0, -2.0], [0.0, 0.1, 0.2, -0.3, 5.0]])
NOTHING_SEEN = torch.zeros(2, 0, dtype=torch.long)


def _sampler(**changes: Any) -> Sampler:
    return Sampler(SamplingConfig(**(VALID | changes)))


def _kept(logits_BV: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits_BV]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": 1e-50}, "temperature=1e-50"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.1}, r"top_p=1\.1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0"),
        ({"repetition_penalty": 1e300}, r"repetition_penalty=1e\+300"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"seed": -(2**63) - 1}, "seed=-9223372036854775809"),
        ({"temperature": 0.0, "top_k": 5}, "top_k=5 .*have no effect"),
        ({"temperature": 0.0, "top_p": 0.5}, r"top_p=0\.5 have no effect"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SamplingConfig(**(VALID | change))


def test_temperature_zero_takes_the_largest_logit() -> None:
    assert _sampler(temperature=0.0).draw(LOGITS, seen_BS=NOTHING_SEEN).tolist() == [3, 4]


@pytest.mark.parametrize("k", [1, 2, 5, 99])
def test_top_k_keeps_the_k_largest(k: int) -> None:
    expected = [sorted(sorted(range(5), key=row.__getitem__)[-k:]) for row in LOGITS.tolist()]
    kept = keep_top_k(LOGITS, k)
    assert _kept(kept) == expected
    assert torch.equal(kept[kept.isfinite()], LOGITS[kept.isfinite()])


def test_top_k_keeps_exactly_k_of_equal_logits() -> None:
    assert [len(row) for row in _kept(keep_top_k(torch.zeros(2, 9), 4))] == [4, 4]


def _nucleus(row: list[float], p: float) -> list[int]:
    total = sum(math.exp(logit) for logit in row)
    kept: list[int] = []
    reached = 0.0
    for token in sorted(range(len(row)), key=row.__getitem__, reverse=True):
        kept.append(token)
        reached += math.exp(row[token]) / total
        if reached >= p:
            break
    return sorted(kept)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.75, 0.95, 0.999])
def test_top_p_keeps_the_token_that_crosses(p: float) -> None:
    kept = keep_top_p(LOGITS, p)
    assert _kept(kept) == [_nucleus(row, p) for row in LOGITS.tolist()]
    assert torch.equal(kept[kept.isfinite()], LOGITS[kept.isfinite()])


def test_top_p_of_one_half_keeps_both_of_a_coin_with_a_bias() -> None:
    # 0.4 + 0.35 crosses 0.5 with the second token.
    assert _kept(keep_top_p(torch.tensor([[0.25, 0.4, 0.35]]).log(), 0.5)) == [[1, 2]]


def test_top_p_of_one_keeps_all() -> None:
    logits = torch.randn(2, 5000) * 20
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_the_penalty_lowers_positive_and_negative_logits_of_seen_tokens_once() -> None:
    seen = torch.tensor([[0, 0, 1], [3, 4, 3]])
    found = penalize_repetition(LOGITS, seen_BS=seen, penalty=2.0)
    expected = [[1.0, -2.0, 0.5, 3.0, -2.0], [0.0, 0.1, 0.2, -0.6, 2.5]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert (found <= LOGITS).all()


def test_a_penalty_changes_what_greedy_takes() -> None:
    seen = torch.tensor([[3], [4]])
    sampler = _sampler(temperature=0.0, repetition_penalty=100.0)
    assert sampler.draw(LOGITS, seen_BS=seen).tolist() == [0, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    sampler = _sampler(temperature=temperature)
    num_draws = 20_000
    logits = LOGITS[:1].expand(num_draws, -1)
    drawn = sampler.draw(logits, seen_BS=torch.zeros(num_draws, 0, dtype=torch.long))
    weights = [math.exp(logit / temperature) for logit in LOGITS[0].tolist()]
    for token, weight in enumerate(weights):
        share = float((drawn == token).float().mean())
        # Four standard deviations of a share of 20,000 draws are below 0.0142.
        assert share == pytest.approx(weight / sum(weights), abs=0.0142)


def test_a_tiny_temperature_takes_the_largest_logit() -> None:
    sampler = _sampler(temperature=1e-30)
    assert sampler.draw(LOGITS * 1e4, seen_BS=NOTHING_SEEN).tolist() == [3, 4]


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
@pytest.mark.parametrize("temperature", [1e-30, 1.0, 1e300])
def test_the_most_extreme_settings_still_draw(temperature: float, penalty: float) -> None:
    for seed in (-(2**63), 0, 2**64 - 1):
        sampler = _sampler(temperature=temperature, repetition_penalty=penalty, seed=seed)
        drawn = sampler.draw(LOGITS * 100, seen_BS=torch.tensor([[0, 1], [0, 4]]))
        assert all(0 <= token < 5 for token in drawn.tolist())


def test_draws_never_leave_what_is_kept() -> None:
    sampler = _sampler(temperature=5.0, top_k=2)
    drawn = {tuple(sampler.draw(LOGITS, seen_BS=NOTHING_SEEN).tolist()) for _ in range(200)}
    assert {first for first, _ in drawn} == {0, 3}
    assert {second for _, second in drawn} == {2, 4}


def test_the_same_seed_draws_the_same_tokens_whatever_else_draws() -> None:
    def tokens(seed: int) -> list[list[int]]:
        sampler = _sampler(seed=seed, temperature=3.0)
        drawn = []
        for _ in range(20):
            torch.rand(3)
            drawn.append(sampler.draw(LOGITS, seen_BS=NOTHING_SEEN).tolist())
        return drawn

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
