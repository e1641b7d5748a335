"""The key/value cache of a decoding run: room for a fixed number of tokens, filled in order."""

import torch
from torch import Tensor

from trilith.model.config import ModelConfig


class KVCache:
    """Keys and values of all layers for one batch of sequences of equal length.

    Axes as in `attention`: B batch, K key/value heads, S tokens, C head width.
    """

    def __init__(self, config: ModelConfig, *, batch_size: int, capacity: int) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_width)
        self.keys = torch.empty(shape)
        self.values = torch.empty(shape)
        self.capacity = capacity
        self.length = 0

    def extend(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return those of all tokens up to them."""
        end = self.require_room(k_BKTC.shape[2])
        self.keys[layer, :, :, self.length : end] = k_BKTC
        self.values[layer, :, :, self.length : end] = v_BKTC
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def require_room(self, num_new: int) -> int:
        """Return how many tokens there will be with `num_new` more.

        Raises:
            ValueError: they do not fit.
        """
        end = self.length + num_new
        if end > self.capacity:
            raise ValueError(
                f"the KV cache holds {self.capacity} tokens and {end} are asked for; "
                "shorten the prompt or the continuation"
            )
        return end

    def advance(self, num_new: int) -> None:
        """Count `num_new` tokens as seen, once all layers have stored them."""
        self.length += num_new
