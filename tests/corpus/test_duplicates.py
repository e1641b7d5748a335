"""Exact and near duplicates against a plain comparison of all pairs."""

import random
import re

import numpy as np
import pytest

from trilith.corpus import DuplicateConfig
from trilith.corpus.duplicates import exact_key, jaccard, near_duplicates


def words(seed: int, num_words: int) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(500)}" for _ in range(num_words)]


def plain_shingles(text: str, ngram: int) -> set[tuple[str, ...]]:
    tokens = re.findall(r"\w+|[^\w\s]", text)
    if len(tokens) < ngram:
        return {tuple(tokens)} if tokens else set()
    return {tuple(tokens[start : start + ngram]) for start in range(len(tokens) - ngram + 1)}


def plain_near_duplicates(texts: list[str], config: DuplicateConfig) -> dict[int, int]:
    sets = [plain_shingles(text, config.ngram) for text in texts]
    kept: list[int] = []
    repeats = {}
    for index, mine in enumerate(sets):
        for other in kept:
            union = mine | sets[other]
            if not union or len(mine & sets[other]) / len(union) >= config.threshold:
                repeats[index] = other
                break
        else:
            kept.append(index)
    return repeats


def family(seed: int) -> list[str]:
    """A text, and copies with more and more of its words exchanged."""
    rng = random.Random(seed)
    base = words(seed, 400)
    texts = [" ".join(base)]
    for num_changes in (1, 4, 8, 12, 20, 60):
        changed = list(base)
        for place in rng.sample(range(len(base)), num_changes):
            changed[place] = f"new{rng.randrange(10**6)}"
        texts.append(" ".join(changed))
    return texts


def test_white_space_at_line_ends_does_not_hide_an_exact_copy() -> None:
    assert exact_key("a\nb\n") == exact_key("\na  \nb")
    assert exact_key("a\n  b") != exact_key("a\nb")


@pytest.mark.parametrize("config", [DuplicateConfig(), DuplicateConfig(ngram=2, threshold=0.6)])
def test_near_duplicates_are_those_that_all_pairs_give(config: DuplicateConfig) -> None:
    texts = [text for seed in range(12) for text in family(seed)]
    random.Random(0).shuffle(texts)
    found = near_duplicates(texts, config)
    assert found == plain_near_duplicates(texts, config)
    assert 12 <= len(found) < len(texts) - 12


def test_short_and_empty_texts_are_compared_too() -> None:
    texts = ["", "one two", "one two", "two one", " ", "one"]
    assert near_duplicates(texts, DuplicateConfig()) == {2: 1, 4: 0}
    assert near_duplicates([], DuplicateConfig()) == {}


def test_the_order_of_words_matters() -> None:
    base = words(1, 200)
    assert near_duplicates([" ".join(base), " ".join(reversed(base))], DuplicateConfig()) == {}


def test_jaccard_at_hand() -> None:
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert jaccard(np.array([1]), np.array([2])) == 0
    assert jaccard(np.array([]), np.array([])) == 1
