"""A cache whose tensors never change shape, with its position in a tensor: what a CUDA graph needs.

Axes as in `attention`: B batch, T new tokens, S capacity, H heads, K key/value heads, C head width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.model.config import ModelConfig


class StaticCache:
    """Keys and values in float32 for one batch of sequences of equal length, all on one device.

    Attributes:
        capacity: tokens that it has room for.
        length: tokens seen so far, as `position` says on the device; kept by who runs the model.
        position: int64 [1], where the next token goes.
    """

    def __init__(
        self, config: ModelConfig, *, batch_size: int, capacity: int, device: torch.device
    ) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_width)
        # Zeros: what was never written is masked, and must be no NaN to stay without effect.
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.batch_size, self.capacity, self.length = batch_size, capacity, 0

    def require_room(self, num_new: int) -> None:
        """Refuse more tokens than fit.

        Raises:
            ValueError: they do not fit.
        """
        if self.length + num_new > self.capacity:
            raise ValueError(
                f"the KV cache holds {self.capacity} tokens and {self.length + num_new} are asked "
                "for; shorten the prompt or the continuation"
            )

    def positions(self, num_new: int) -> Tensor:
        """Positions of the next tokens: int64 [T]."""
        return self.position + torch.arange(num_new, device=self.position.device)

    def attend(self, layer: int, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
        """Store a layer's new keys and values; attend to all up to each token: [B, H, T, C]."""
        positions_T = self.positions(q_BHTC.shape[2])
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, positions_T, k_BKTC.to(keys.dtype))
        values.index_copy_(2, positions_T, v_BKTC.to(values.dtype))
        mask_TS = torch.arange(self.capacity, device=keys.device) <= positions_T[:, None]
        # Heads that share keys are more queries of them.
        repeats = q_BHTC.shape[1] // keys.shape[1]
        q_BKQC = q_BHTC.unflatten(1, (-1, repeats)).flatten(2, 3)
        mask_QS = mask_TS.repeat(repeats, 1)
        mixed_BKQC = F.scaled_dot_product_attention(q_BKQC, keys, values, attn_mask=mask_QS)
        return mixed_BKQC.unflatten(2, (repeats, -1)).flatten(1, 2)

    def advance(self, num_new: int) -> None:
        """Move the position, once all layers have stored the tokens; a graph replays this."""
        self.position += num_new
