"""One decoder-only transformer for dense, ternary and packed weights: only its linears differ.

Axes: B batch, T tokens, D width, V vocabulary.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trilith.model.attention import Attention, LinearFactory, isolate, rope_tables
from trilith.model.cache import KVCache
from trilith.model.config import ModelConfig
from trilith.model.norm import RMSNorm
from trilith.model.static_cache import StaticCache
from trilith.quant import BitLinear, QuantConfig

_INIT_STD = 0.02


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202), squared ReLU (arXiv 2109.08668) or its gated form."""

    def __init__(self, config: ModelConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.kind = config.mlp
        self.up = linear(config.width, config.mlp_width * (2 if config.is_gated else 1))
        self.sub_norm = (
            RMSNorm(config.mlp_width, config.norm_eps) if config.sub_norm else nn.Identity()
        )
        self.down = linear(config.mlp_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each token by itself: [B, T, D] -> [B, T, D]."""
        hidden = self.up(x_BTD)
        if self.kind == "relu2":
            return self.down(self.sub_norm(F.relu(hidden).square()))
        gate, value = hidden.chunk(2, dim=-1)
        activated = F.silu(gate) if self.kind == "swiglu" else F.relu(gate).square()
        return self.down(self.sub_norm(activated * value))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, *, layer: int, linear: LinearFactory) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer=layer, linear=linear)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = Mlp(config, linear)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | StaticCache | None,
        mask_BTT: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; `Attention` says what the mask is."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rope, cache, mask_BTT)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Transformer(nn.Module):
    """Tokens to logits. `linear` makes the projections: dense, BitLinear or packed ones.

    While `checkpoints_blocks` is set, training keeps the inputs of each block alone, and computes
    the rest again in the backward pass.
    """

    checkpoints_blocks = False

    def __init__(self, config: ModelConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            Block(config, layer=layer, linear=linear) for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        tokens_BT: Tensor,
        cache: KVCache | StaticCache | None = None,
        *,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the logits [B, T, V] of the token after each of tokens [B, T].

        Args:
            tokens_BT: ids.
            cache: the tokens follow those already in it, and are added to it.
            segments_BT: number of each token's segment; neighbouring segments differ. None is one
                segment a row. Segments do not see each other: each has the logits that it would
                have alone.
        """
        return self.head(self.hidden(tokens_BT, cache, segments_BT=segments_BT))

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: KVCache | StaticCache | None = None,
        *,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Return what the head reads: [B, T] -> [B, T, D]; arguments as for the whole model."""
        num_new = tokens_BT.shape[1]
        if segments_BT is None:
            if isinstance(cache, StaticCache):
                positions = cache.positions(num_new)
            else:
                start = 0 if cache is None else cache.length
                positions = torch.arange(start, start + num_new, device=tokens_BT.device)
            mask_BTT = None
        else:
            assert cache is None, "a cache holds one sequence a row"
            positions_BT, mask_BTT = isolate(segments_BT)
            positions = positions_BT[:, None]
        rope = rope_tables(positions, self.config.head_width, self.config.rope_theta)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            if self.checkpoints_blocks and self.training:
                x_BTD = checkpoint(block, x_BTD, rope, cache, mask_BTT, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rope, cache, mask_BTT)
        if cache is not None:
            cache.advance(num_new)
        return self.norm(x_BTD)


def build_model(config: ModelConfig, quant: QuantConfig | None) -> Transformer:
    """Build a model with fresh weights: dense for `quant=None`, else with BitLinear projections.

    The draw of the weights does not depend on `quant`: twins start equal.
    """
    if quant is None:
        linear: LinearFactory = partial(nn.Linear, bias=False)
    else:
        linear = partial(BitLinear, config=quant)
    model = Transformer(config, linear)
    initialize(model)
    return model


@torch.no_grad()
def initialize(model: Transformer) -> None:
    """Draw all weights from the global generator; outputs into the residual stream are smaller."""
    shrink = 1 / math.sqrt(2 * model.config.num_layers)
    nn.init.normal_(model.embedding.weight, std=_INIT_STD)
    if not model.config.tied_head:
        nn.init.normal_(model.head.weight, std=_INIT_STD)
    for name, linear in model.blocks.named_modules():
        if isinstance(linear, nn.Linear):
            factor = shrink if name.endswith((".out", ".down")) else 1.0
            nn.init.normal_(linear.weight, std=factor / math.sqrt(linear.in_features))
        if isinstance(linear, BitLinear):
            linear.refit()
