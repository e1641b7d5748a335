"""Decoding with tensors that stay where they are: a step is a CUDA graph, captured and replayed.

A step of a small model is hundreds of launches of some microseconds each; a graph is one. Without a
CUDA device the same step runs launch by launch, which is how it is tested on CPUs.

Axes: B batch, T prompt tokens, V vocabulary.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trilith.model import StaticCache, Transformer

# Steps before the capture: kernels are compiled and tuned in them.
_WARM_UP_STEPS = 2


class _Graph(NamedTuple):
    """A captured step with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    tokens_B: Tensor
    logits_BV: Tensor


class StaticDecoder:
    """Runs a model on static caches; each has its own graph, captured at its first token.

    `captures` False runs every step launch by launch, also on a CUDA device.
    """

    def __init__(self, model: Transformer, *, captures: bool | None = None) -> None:
        self._model = model
        self._device = model.norm.weight.device
        self._captures = self._device.type == "cuda" if captures is None else captures
        self._graphs: WeakKeyDictionary[StaticCache, _Graph] = WeakKeyDictionary()

    def new_cache(self, *, batch_size: int, capacity: int) -> StaticCache:
        """Make an empty cache on the device of the model."""
        sizes = {"batch_size": batch_size, "capacity": capacity}
        return StaticCache(self._model.config, **sizes, device=self._device)

    def prefill(self, tokens_BT: Tensor, *, cache: StaticCache) -> Tensor:
        """Run prompts of equal length; return the logits [B, V] of what follows."""
        num_new = tokens_BT.shape[1]
        cache.require_room(num_new)
        hidden = self._model.hidden(tokens_BT.to(self._device), cache)
        cache.length += num_new
        return self._model.head(hidden[:, -1])

    def step(self, tokens_B: Tensor, *, cache: StaticCache) -> Tensor:
        """Add one token to each sequence; return the logits [B, V] of what follows."""
        cache.require_room(1)
        tokens_B = tokens_B.to(self._device)
        if not self._captures:
            logits_BV = self._plain_step(tokens_B, cache)
        else:
            if cache not in self._graphs:
                self._graphs[cache] = self._capture(tokens_B, cache)
            graph, static_tokens_B, static_logits_BV = self._graphs[cache]
            static_tokens_B.copy_(tokens_B)
            graph.replay()
            # The next replay writes there again.
            logits_BV = static_logits_BV.clone()
        cache.length += 1
        return logits_BV

    def _plain_step(self, tokens_B: Tensor, cache: StaticCache) -> Tensor:
        return self._model(tokens_B[:, None], cache)[:, 0]

    def _capture(self, tokens_B: Tensor, cache: StaticCache) -> _Graph:
        """Capture one step; the cache is left as it was, but for what is written again."""
        tokens_B, position = tokens_B.clone(), cache.position.clone()
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._plain_step(tokens_B, cache)
                cache.position.copy_(position)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            logits_BV = self._plain_step(tokens_B, cache)
        return _Graph(graph, tokens_B, logits_BV)
