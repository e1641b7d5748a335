"""KV caches of recent prompts and answers: a prompt that begins as one of them runs what is new.

Whatever is taken changes no bit of the logits. Native kernels give a token the same bits in a
prompt and in an answer, so all of both is kept. Where the torch modules run prompts it has not:
there, what is kept was written by prefill alone, in whole parts of `Engine.part_tokens`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from trilith.model import KVCache
from trilith.runtime.memory import cache_bytes


class _Kept(NamedTuple):
    """Ids, and the cache that holds them and nothing else."""

    ids: tuple[int, ...]
    cache: KVCache


class KeptCaches:
    """Copies of the caches of up to `number` prompts; the least recently used goes first.

    They never take more than `max_bytes` together, not even while one is copied: what is larger
    alone is not kept. Nothing in here is ever written to again, and only whole copies get in. For
    one thread.
    """

    def __init__(self, number: int, *, max_bytes: int | None = None) -> None:
        if number < 1:
            raise ValueError(f"{number} kept caches: at least 1 must be kept")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes} of kept caches must be at least 1")
        self._number, self._max_bytes = number, max_bytes
        self._kept: list[_Kept] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(kept.cache.nbytes for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def restore(self, prompt_ids: Sequence[int], *, cache: KVCache, grain: int) -> int:
        """Begin an empty cache with as much of a prompt as is kept.

        At least one token is left to run: its logits are those of what follows.

        Args:
            prompt_ids: the whole prompt.
            cache: to begin.
            grain: a kept cache is cut at multiples of so many tokens.

        Returns:
            How many tokens the cache holds then.
        """
        usable = [_usable(kept, prompt_ids, grain=grain) for kept in self._kept]
        length = max(usable, default=0)
        if length:
            found = self._kept.pop(usable.index(length))
            self._kept.append(found)
            cache.copy_from(found.cache, length=length)
        return length

    def keep(self, ids: Sequence[int], *, cache: KVCache) -> None:
        """Keep a copy of a cache with these ids, in the place of what begins it."""
        ids = tuple(ids)
        assert len(ids) == cache.length, (len(ids), cache.length)
        model, batch_size, config = cache.model, cache.batch_size, cache.config
        needed = cache_bytes(model, batch_size=batch_size, capacity=len(ids), config=config)
        if self._make_room(ids, needed):
            copy = KVCache(model, batch_size=batch_size, capacity=len(ids), config=config)
            copy.copy_from(cache, length=len(ids))
            self._kept.append(_Kept(ids, copy))

    def _make_room(self, ids: tuple[int, ...], num_bytes: int) -> bool:
        """Let go of what begins `ids`, and of the oldest; False, and nothing, if that is no use."""
        most = num_bytes if self._max_bytes is None else self._max_bytes
        if num_bytes > most:
            return False
        others = [kept for kept in self._kept if ids[: len(kept.ids)] != kept.ids]
        self._kept = others[max(0, len(others) - self._number + 1) :]
        while self._max_bytes is not None and self.nbytes + num_bytes > self._max_bytes:
            del self._kept[0]
        return True


def _usable(kept: _Kept, prompt_ids: Sequence[int], *, grain: int) -> int:
    """Tokens of a prompt that can be taken: all that is kept, or without a window whole grains."""
    most = min(len(kept.ids), len(prompt_ids) - 1)
    same = (mine == theirs for mine, theirs in zip(kept.ids[:most], prompt_ids, strict=False))
    num_same = next((place for place, is_same in enumerate(same) if not is_same), most)
    if num_same == len(kept.ids):
        return num_same
    return num_same // grain * grain if kept.cache.config.window is None else 0
