"""Blocks that are read from the mapped file one by one, the next while one runs.

For models that are larger than the memory: two blocks are there at any time.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import nn

from trilith.model import Block
from trilith.packed import PackedFile, build_packed_block


@dataclass
class StreamTimes:
    """Seconds since the start: reading in its thread, running, and the waits of the latter."""

    read_s: float = 0.0
    compute_s: float = 0.0
    wait_s: float = 0.0

    @property
    def overlap(self) -> float:
        """Share of the reading that ran beside the computation, 0..1."""
        return max(0.0, 1 - self.wait_s / self.read_s) if self.read_s else 0.0


class LayerStream(nn.Module):
    """Stands where a model has its blocks: one pass over it reads each block once, in order."""

    def __init__(self, file: PackedFile) -> None:
        super().__init__()
        self.file = file
        self.times = StreamTimes()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="blocks")
        # The first block, read ahead for the next pass.
        self._first: Future[Block] | None = None

    def __len__(self) -> int:
        return self.file.manifest.model.num_layers

    def __iter__(self) -> Iterator[Block]:
        # Forgotten at once: if this pass breaks off, the next one must begin anew.
        following, self._first = self._first or self._reader.submit(self._read, 0), None
        try:
            for layer in range(len(self)):
                start = time.perf_counter()
                block = following.result()
                # After the last one comes the first of the next pass.
                following = self._reader.submit(self._read, (layer + 1) % len(self))
                ready = time.perf_counter()
                yield block
                del block
                self.times.wait_s += ready - start
                self.times.compute_s += time.perf_counter() - ready
            self._first = following
        finally:
            if following is not self._first:
                following.cancel()

    def close(self) -> None:
        """End the thread."""
        self._reader.shutdown(cancel_futures=True)

    def _read(self, layer: int) -> Block:
        start = time.perf_counter()
        block = build_packed_block(self.file, layer)
        self.times.read_s += time.perf_counter() - start
        return block
