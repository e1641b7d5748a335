"""An engine whose caches can be counted, and that can be met in the middle of a token."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from torch import Tensor

from trilith.model import KVCache
from trilith.runtime import Engine


class WatchedEngine(Engine):
    """Counts caches, and calls `in_token` while tokens are drawn; nothing else differs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held_caches: WeakSet[KVCache] = WeakSet()
        self.in_token: Callable[[], None] = lambda: None

    def new_cache(self, **sizes: int) -> KVCache:
        cache = super().new_cache(**sizes)
        self.held_caches.add(cache)
        return cache

    def decode_together(self, tokens_B: Tensor, *, caches: Sequence[KVCache]) -> Tensor:
        self.in_token()
        return super().decode_together(tokens_B, caches=caches)
