"""The transformer as plain modules, its shape, its cache and its counts."""

from trilith.model.cache import KVCache
from trilith.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    require_shape,
    save_checkpoint,
)
from trilith.model.config import ModelConfig
from trilith.model.count import ParameterCount, count_parameters, training_flops_per_token
from trilith.model.grid_change import move_to_grid
from trilith.model.norm import RMSNorm
from trilith.model.transformer import Transformer, build_model

__all__ = [
    "Checkpoint",
    "KVCache",
    "ModelConfig",
    "ParameterCount",
    "RMSNorm",
    "Transformer",
    "build_model",
    "count_parameters",
    "load_checkpoint",
    "load_weights",
    "move_to_grid",
    "require_shape",
    "save_checkpoint",
    "training_flops_per_token",
]
