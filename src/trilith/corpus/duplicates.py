"""Which documents say what an earlier one already said: exact copies and near copies.

Near copies: rensa's MinHash over token n-grams proposes pairs, the true Jaccard similarity of the
two sets decides.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash

from trilith.corpus.config import DuplicateConfig

_TOKEN = re.compile(r"\w+|[^\w\s]")
# Odd constant of SplitMix64; as a multiplier modulo 2^64 it keeps the order of the tokens.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def exact_key(text: str) -> str:
    """Hash what a text says: white space at line ends and around the whole does not count."""
    normal = "\n".join(line.rstrip() for line in text.strip().split("\n"))
    return hashlib.sha256(normal.encode()).hexdigest()


def near_duplicates(texts: Sequence[str], config: DuplicateConfig) -> dict[int, int]:
    """Find the texts that repeat an earlier one.

    The first of each family in the given order stays; a text is compared with those that stayed.

    Returns:
        For the place of each text that should go, the place of the one that it repeats.
    """
    if not texts:
        return {}
    token_hashes = _TokenHashes()
    shingles = [_shingles(text, token_hashes, config.ngram) for text in texts]
    bands = _bands(shingles, config)
    kept_by_band: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    repeats: dict[int, int] = {}
    for index in range(len(texts)):
        keys = [(band, row.tobytes()) for band, row in enumerate(bands[index])]
        candidates = sorted({kept for key in keys for kept in kept_by_band.get(key, ())})
        original = _first_alike(index, candidates, shingles=shingles, threshold=config.threshold)
        if original is not None:
            repeats[index] = original
            continue
        for key in keys:
            kept_by_band[key].append(index)
    return repeats


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity of two sets, given as arrays without repeats; two empty sets are equal."""
    shared = np.intersect1d(left, right, assume_unique=True).size
    union = left.size + right.size - shared
    return shared / union if union else 1.0


class _TokenHashes(dict[str, int]):
    """64-bit hash of a token, the same in every process, computed once."""

    def __missing__(self, token: str) -> int:
        value = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little")
        self[token] = value
        return value


def _shingles(text: str, token_hashes: _TokenHashes, ngram: int) -> np.ndarray:
    tokens = _TOKEN.findall(text)
    hashes = np.array([token_hashes[token] for token in tokens], dtype=np.uint64)
    num_shingles = max(len(tokens) - ngram + 1, min(len(tokens), 1))
    combined = np.zeros(num_shingles, dtype=np.uint64)
    for offset in range(min(ngram, len(tokens))):
        combined = combined * _MULTIPLIER + hashes[offset : offset + num_shingles]
    # A product alone leaves the low bits weak, and MinHash permutes them.
    combined ^= combined >> np.uint64(31)
    return np.unique(combined * _MULTIPLIER)


def _bands(shingles: list[np.ndarray], config: DuplicateConfig) -> np.ndarray:
    offsets = np.cumsum([0, *(each.size for each in shingles)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(shingles), offsets, config.num_permutations, config.seed
    )
    signatures = np.array(matrix.to_rows(), dtype=np.uint32)
    return signatures.reshape(len(shingles), config.num_bands, -1)


def _first_alike(
    index: int, candidates: list[int], *, shingles: list[np.ndarray], threshold: float
) -> int | None:
    mine = shingles[index]
    for candidate in candidates:
        theirs = shingles[candidate]
        # Sets of too different sizes cannot be alike; this spares most of the comparisons.
        if min(mine.size, theirs.size) < threshold * max(mine.size, theirs.size):
            continue
        if jaccard(mine, theirs) >= threshold:
            return candidate
    return None
