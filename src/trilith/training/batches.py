"""Batches as a function of seed and position, so that a run can stop anywhere and go on exactly.

Axes: B sequences, T tokens.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

# Targets with this value do not count in the loss.
IGNORED = -100


class Batch(NamedTuple):
    """Inputs and the token that follows each of them; the one place where the shift happens."""

    inputs_BT: Tensor  # int64
    targets_BT: Tensor  # int64, IGNORED where a prediction does not count
    segments_BT: Tensor | None = None  # int64, which sequence of the row an input belongs to

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        segments = None if self.segments_BT is None else self.segments_BT.to(device)
        return Batch(self.inputs_BT.to(device), self.targets_BT.to(device), segments)


def shift(
    rows: np.ndarray, counted: np.ndarray | None = None, segments: np.ndarray | None = None
) -> Batch:
    """Turn rows of T + 1 tokens into a batch of T predictions.

    Args:
        rows: token ids [B, T + 1].
        counted: bool [B, T + 1], True where the token counts as a target; None counts all.
        segments: numbers [B, T + 1] of the sequences that share a row; None where none does.
    """
    tokens = torch.from_numpy(rows.astype(np.int64))
    targets = tokens[:, 1:].clone()
    if counted is not None:
        targets[~torch.from_numpy(counted[:, 1:])] = IGNORED
    inputs = tokens[:, :-1].contiguous()
    if segments is None:
        return Batch(inputs, targets)
    return Batch(inputs, targets, torch.from_numpy(segments[:, :-1].astype(np.int64)))


class BatchSource(Protocol):
    """Anything that gives the batch at a position of the run."""

    def batch(self, position: int) -> Any: ...


class _EpochOrder:
    """Every place once an epoch, each epoch in its own order drawn from the seed."""

    def __init__(self, num_places: int, seed: int) -> None:
        self.num_places = num_places
        self.seed = seed
        self._epoch = -1
        self._places = np.empty(0, dtype=np.int64)

    def place(self, index: int) -> int:
        """Return the place of the `index`-th draw, counted from 0 over all epochs."""
        epoch, within = divmod(index, self.num_places)
        if epoch != self._epoch:
            self._places = np.random.default_rng((self.seed, epoch)).permutation(self.num_places)
            self._epoch = epoch
        return int(self._places[within])


class TokenWindows:
    """Windows of a token stream, each once per epoch, in an order drawn from the seed."""

    def __init__(self, tokens: np.ndarray, *, context: int, batch_size: int, seed: int) -> None:
        self.num_windows = (len(tokens) - 1) // context
        if self.num_windows < batch_size:
            raise ValueError(
                f"{len(tokens)} tokens hold {self.num_windows} windows of context={context}, and a "
                f"batch needs {batch_size}; use a larger corpus, a smaller context or batch"
            )
        self.tokens = tokens
        self.context = context
        self.batch_size = batch_size
        self._order = _EpochOrder(self.num_windows, seed)

    def batch(self, position: int) -> Batch:
        """Return the batch at `position`, counted from 0 over all epochs."""
        first = position * self.batch_size
        return self.rows(range(first, first + self.batch_size))

    def rows(self, indices: range) -> Batch:
        """Return the windows of these draws, counted from 0 over all epochs, as one batch."""
        return shift(np.stack([self._window(index) for index in indices]))

    def place(self, index: int) -> int:
        """Return which window of the stream the `index`-th draw is."""
        return self._order.place(index)

    def _window(self, index: int) -> np.ndarray:
        start = self.place(index) * self.context
        return self.tokens[start : start + self.context + 1]


class MaskedRows:
    """Rows of T + 1 tokens with a mask of the targets that count, shuffled each epoch.

    `segments` numbers the sequences that share a row, where some do.
    """

    def __init__(
        self,
        rows: np.ndarray,
        counted: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        segments: np.ndarray | None = None,
    ) -> None:
        assert rows.shape == counted.shape, (rows.shape, counted.shape)
        assert segments is None or segments.shape == rows.shape, segments
        if not len(rows):
            raise ValueError("there is no instruction to train on; the corpus gives none")
        self.rows = rows
        self.counted = counted
        self.segments = segments
        self.batch_size = batch_size
        self._order = _EpochOrder(len(rows), seed)

    def batch(self, position: int) -> Batch:
        """Return the batch at `position`, counted from 0 over all epochs."""
        first = position * self.batch_size
        places = [self._order.place(index) for index in range(first, first + self.batch_size)]
        segments = None if self.segments is None else self.segments[places]
        return shift(self.rows[places], self.counted[places], segments)


class PositionLoader:
    """A data loader whose whole state is a position. Lightning saves and restores it.

    Of several processes each takes its turn: rank r of W gives the positions r, r + W, ... Saved is
    the number of batches that all gave out together, so that any number of processes can go on.
    It needs a length: without one Lightning fetches a batch ahead and saves the wrong position.

    Args:
        source: gives the batches.
        num_batches: how many this process gives out.
        rank: of this process.
        num_ranks: how many processes take turns.
    """

    def __init__(
        self, source: BatchSource, *, num_batches: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.source = source
        self.num_batches = num_batches
        self.rank = rank
        self.num_ranks = num_ranks
        self.position = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.num_batches:
            self.position += 1
            yield self.source.batch((self.position - 1) * self.num_ranks + self.rank)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches given out by all processes."""
        return {"position": self.position * self.num_ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches given out when the state was saved."""
        assert state["position"] % self.num_ranks == 0, (state, self.num_ranks)
        self.position = state["position"] // self.num_ranks


class HeldOutLoader:
    """A data loader that gives the same batches each time it is asked.

    It has no state: Lightning stops asking after the last batch, before the iterator ends.
    Of several processes each gives as many of the `num_batches`, a multiple of their number.
    """

    def __init__(
        self, source: BatchSource, *, num_batches: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        assert num_batches % num_ranks == 0, (num_batches, num_ranks)
        self.source = source
        self.num_batches = num_batches
        self.rank = rank
        self.num_ranks = num_ranks

    def __len__(self) -> int:
        return self.num_batches // self.num_ranks

    def __iter__(self) -> Iterator[Any]:
        positions = range(self.rank, self.num_batches, self.num_ranks)
        return (self.source.batch(position) for position in positions)
