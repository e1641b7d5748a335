"""The transformer as plain modules, its shape, its cache and its counts."""

from trilith.model.bias import Bias
from trilith.model.cache import KVCache
from trilith.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    require_shape,
    save_checkpoint,
)
from trilith.model.config import ModelConfig
from trilith.model.count import (
    ParameterCount,
    count_parameters,
    model_on_meta,
    projection_weights,
    training_flops_per_token,
)
from trilith.model.empty import empty_model, without_memory
from trilith.model.grid_change import move_to_grid
from trilith.model.norm import RMSNorm
from trilith.model.static_cache import StaticCache
from trilith.model.transformer import Transformer, build_model

__all__ = [
    "Bias",
    "Checkpoint",
    "KVCache",
    "ModelConfig",
    "ParameterCount",
    "RMSNorm",
    "StaticCache",
    "Transformer",
    "build_model",
    "count_parameters",
    "empty_model",
    "load_checkpoint",
    "load_weights",
    "model_on_meta",
    "move_to_grid",
    "projection_weights",
    "require_shape",
    "save_checkpoint",
    "training_flops_per_token",
    "without_memory",
]
