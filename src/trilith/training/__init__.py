"""Training with Lightning: batches, recipes, stability, throughput, curves and exact resume."""

from trilith.training.evolve import EvolveConfig, EvolveInputs, Phase, evolve
from trilith.training.fit import RunPlace, TrainConfig
from trilith.training.hardware import HardwareConfig, device_name, peak_flops, prepare_cpu
from trilith.training.pretrain import PretrainConfig, PretrainPlan, Twin, pretrain
from trilith.training.recipe import Recipe
from trilith.training.stability import StabilityConfig
from trilith.training.tracking import TrackingConfig, start_run

__all__ = [
    "EvolveConfig",
    "EvolveInputs",
    "HardwareConfig",
    "Phase",
    "PretrainConfig",
    "PretrainPlan",
    "Recipe",
    "RunPlace",
    "StabilityConfig",
    "TrackingConfig",
    "TrainConfig",
    "Twin",
    "device_name",
    "evolve",
    "peak_flops",
    "prepare_cpu",
    "pretrain",
    "start_run",
]
