"""Floors for a language model: what counting single tokens and pairs already achieves.

A trained model that is not below them has learned nothing about context. Both are proper
distributions over the vocabulary, so the losses compare with the model's cross-entropy.
"""

from dataclasses import dataclass

import numpy as np


def unigram_loss(train: np.ndarray, *, test: np.ndarray, vocab_size: int) -> float:
    """Mean loss in nats per token of `test` when each token is guessed from its frequency.

    Every count is raised by one, so a token that `train` lacks has a finite loss. The first token
    of `test` is left out, as it is in `bigram_loss`: both average over the same tokens.
    """
    _check(train, vocab_size=vocab_size, name="train")
    _check(test, vocab_size=vocab_size, name="test")
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[test[1:]].mean())


def bigram_loss(train: np.ndarray, *, test: np.ndarray, vocab_size: int) -> float:
    """Mean loss in nats per token of `test` under interpolated Kneser-Ney bigrams of `train`."""
    model = fit_bigrams(train, vocab_size=vocab_size)
    _check(test, vocab_size=vocab_size, name="test")
    return float(-np.log(model.probability(test[1:], given=test[:-1])).mean())


@dataclass(frozen=True)
class BigramModel:
    """Interpolated Kneser-Ney bigrams (Chen and Goodman 1998, equation 23, order 2).

    p(b | a) = max(c(a b) - D, 0) / c(a) + D * N(a) / c(a) * q(b), with N(a) the number of
    different tokens seen after a, and q(b) the share of different pairs that end in b. Ours
    raises each count of q by one, so that q has no zero; an unseen a leaves q(b) alone.

    Attributes:
        pairs: the pairs seen, a * vocab_size + b, sorted.
        pair_counts: how often, for each of `pairs`.
        context_counts: c(a), [vocab_size].
        num_followers: N(a), [vocab_size].
        continuation: q, [vocab_size].
        discount: D, in 0..1.
    """

    pairs: np.ndarray
    pair_counts: np.ndarray
    context_counts: np.ndarray
    num_followers: np.ndarray
    continuation: np.ndarray
    discount: float

    def probability(self, tokens: np.ndarray, *, given: np.ndarray) -> np.ndarray:
        """Probability of each of `tokens` after the token at the same place in `given`."""
        keys = _pair_keys(given, tokens, vocab_size=self.continuation.size)
        places = np.searchsorted(self.pairs, keys).clip(max=self.pairs.size - 1)
        counts = np.where(self.pairs[places] == keys, self.pair_counts[places], 0)
        totals = self.context_counts[given]
        seen = np.maximum(totals, 1)
        kept = np.maximum(counts - self.discount, 0) / seen
        left_over = np.where(totals, self.discount * self.num_followers[given] / seen, 1.0)
        return kept + left_over * self.continuation[tokens]


def fit_bigrams(train: np.ndarray, *, vocab_size: int) -> BigramModel:
    """Count the pairs of `train`; the discount is n1 / (n1 + 2 n2) (Ney, Essen, Kneser 1994)."""
    _check(train, vocab_size=vocab_size, name="train")
    keys = _pair_keys(train[:-1], train[1:], vocab_size=vocab_size)
    pairs, pair_counts = np.unique(keys, return_counts=True)
    num_once, num_twice = int((pair_counts == 1).sum()), int((pair_counts == 2).sum())
    # Without a pair that occurs once there is no evidence of unseen ones; D = 0 would give zeros.
    discount = num_once / (num_once + 2 * num_twice) if num_once else 0.5
    endings = np.bincount(pairs % vocab_size, minlength=vocab_size) + 1.0
    return BigramModel(
        pairs=pairs,
        pair_counts=pair_counts,
        context_counts=np.bincount(train[:-1], minlength=vocab_size),
        num_followers=np.bincount(pairs // vocab_size, minlength=vocab_size),
        continuation=endings / endings.sum(),
        discount=discount,
    )


def _pair_keys(first: np.ndarray, second: np.ndarray, *, vocab_size: int) -> np.ndarray:
    return first.astype(np.int64) * vocab_size + second


def _check(tokens: np.ndarray, *, vocab_size: int, name: str) -> None:
    if tokens.size < 2:
        raise ValueError(f"{name} has {tokens.size} tokens, expected at least 2")
    if int(tokens.max()) >= vocab_size:
        raise ValueError(
            f"{name} holds id {int(tokens.max())}, but vocab_size={vocab_size}; "
            "give the vocabulary of the tokenizer that made the ids"
        )
