"""The floors against counting in plain Python; every distribution sums to one."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from trilith.tokens import bigram_loss, fit_bigrams, unigram_loss


def sample(seed: int, *, num_tokens: int, vocab_size: int) -> np.ndarray:
    """Tokens that depend on the one before, with a few that are rare."""
    rng = np.random.default_rng(seed)
    tokens = [0]
    for _ in range(num_tokens - 1):
        step = min(int(rng.geometric(0.3)), vocab_size)
        tokens.append((tokens[-1] * 3 + step) % vocab_size)
    return np.array(tokens, dtype=np.uint16)


def plain_unigram_loss(train: list[int], test: list[int], vocab_size: int) -> float:
    counts = Counter(train)
    losses = [-math.log((counts[each] + 1) / (len(train) + vocab_size)) for each in test[1:]]
    return sum(losses) / len(losses)


def plain_bigram(train: list[int], vocab_size: int):
    pairs = Counter(pairwise(train))
    contexts = Counter(train[:-1])
    followers = Counter(first for first, _ in pairs)
    endings = Counter(second for _, second in pairs)
    once = sum(count == 1 for count in pairs.values())
    twice = sum(count == 2 for count in pairs.values())
    discount = once / (once + 2 * twice)

    def probability(second: int, first: int) -> float:
        continuation = (endings[second] + 1) / (len(pairs) + vocab_size)
        if not contexts[first]:
            return continuation
        kept = max(pairs[first, second] - discount, 0) / contexts[first]
        return kept + discount * followers[first] / contexts[first] * continuation

    return probability


@pytest.mark.parametrize("vocab_size", [23, 40])
def test_the_losses_are_those_of_plain_counting(vocab_size: int) -> None:
    train = sample(0, num_tokens=900, vocab_size=23)
    # With 40 ids, 17 of them occur in the test split alone.
    test = sample(1, num_tokens=300, vocab_size=vocab_size)
    listed, held_out = train.tolist(), test.tolist()
    probability = plain_bigram(listed, vocab_size)
    losses = [-math.log(probability(second, first)) for first, second in pairwise(held_out)]
    # Sums of 300 doubles: rounding stays far below 1e-12.
    assert bigram_loss(train, test=test, vocab_size=vocab_size) == pytest.approx(
        sum(losses) / len(losses), rel=1e-12
    )
    assert unigram_loss(train, test=test, vocab_size=vocab_size) == pytest.approx(
        plain_unigram_loss(listed, held_out, vocab_size), rel=1e-12
    )


@pytest.mark.parametrize(
    "train",
    [
        sample(0, num_tokens=900, vocab_size=23),
        np.array([1, 2]),
        np.array([5] * 50),
        np.array([1, 2, 3, 4, 5]),
    ],
    ids=["sample", "one pair", "one token", "all once"],
)
def test_after_any_token_the_probabilities_are_positive_and_sum_to_one(train: np.ndarray) -> None:
    model = fit_bigrams(train, vocab_size=30)
    every = np.arange(30)
    for first in range(30):
        probabilities = model.probability(every, given=np.full(30, first))
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_a_chain_is_learned_by_pairs_and_not_by_single_tokens() -> None:
    chain = np.tile(np.arange(50, dtype=np.uint16), 200)
    assert bigram_loss(chain, test=chain, vocab_size=50) < 0.05
    assert unigram_loss(chain, test=chain, vocab_size=50) == pytest.approx(math.log(50), abs=1e-6)


def test_ids_near_the_end_of_16_bits_do_not_overflow() -> None:
    train = np.array([65_535, 65_534] * 20, dtype=np.uint16)
    assert bigram_loss(train, test=train, vocab_size=1 << 16) < 1


@pytest.mark.parametrize("loss", [unigram_loss, bigram_loss])
def test_wrong_input_is_an_error(loss) -> None:
    good = np.array([1, 2, 3, 1, 2])
    with pytest.raises(ValueError, match=r"test has 1 tokens, expected at least 2"):
        loss(good, test=good[:1], vocab_size=4)
    with pytest.raises(ValueError, match=r"train has 0 tokens"):
        loss(good[:0], test=good, vocab_size=4)
    with pytest.raises(ValueError, match=r"test holds id 9, but vocab_size=4"):
        loss(good, test=np.array([1, 9]), vocab_size=4)
