"""Parameters and floating-point operations, counted from the instantiated model."""

from functools import cache, partial
from typing import NamedTuple

from torch import Tensor, nn

from trilith.model.bias import Bias
from trilith.model.config import ModelConfig
from trilith.model.empty import empty_model
from trilith.model.norm import RMSNorm
from trilith.model.transformer import Transformer


class ParameterCount(NamedTuple):
    """Number of weights by part; a tied head counts once, with the embedding."""

    embedding: int
    head: int
    projections: int
    norms: int
    biases: int

    @property
    def total(self) -> int:
        return sum(self)


@cache
def model_on_meta(config: ModelConfig) -> Transformer:
    """Return a dense model of this shape without allocating it; not to be changed."""
    return empty_model(config, partial(nn.Linear, bias=False))


def projection_weights(model: Transformer) -> list[Tensor]:
    """Return the weights that a grid can hold: the linear layers of the blocks."""
    return [module.weight for module in model.blocks.modules() if isinstance(module, nn.Linear)]


@cache
def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the weights of a model of this shape without allocating it (meta device)."""
    model = model_on_meta(config)
    embedding = model.embedding.weight.numel()
    head = 0 if config.tied_head else model.head.weight.numel()
    norms = sum(m.weight.numel() for m in model.modules() if isinstance(m, RMSNorm))
    biases = sum(m.weight.numel() for m in model.modules() if isinstance(m, Bias))
    total = sum(p.numel() for p in model.parameters())
    projections = total - embedding - head - norms - biases
    return ParameterCount(embedding, head, projections, norms, biases)


def training_flops_per_token(model: Transformer, context: int) -> float:
    """FLOPs of one training token: forward and backward, attention included.

    6 per weight that multiplies (projections and head, not the embedding lookup) plus
    12 * layers * width * context / 2 for causal attention (PaLM, arXiv 2204.02311, appendix B,
    halved because a causal mask lets each token see half the context on average). torch's own
    FlopCounterMode counts the same matrix products, but attention over the whole square; neither
    counts element-wise work such as norms, rotation, softmax and fake quantization.
    """
    config = model.config
    head = model.head.weight.numel()
    projections = count_parameters(config).projections
    attention = 6 * config.num_layers * config.width * context
    return 6.0 * (projections + head) + attention
