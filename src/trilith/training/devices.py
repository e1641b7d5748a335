"""The devices of a run: how many, how they share the work, and which process of them this is."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed


@dataclass(frozen=True)
class TrainerConfig:
    """One process a device, `devices` on each of `num_nodes` machines.

    "single" is one process. "ddp" keeps the whole model on every device and averages gradients.
    "fsdp" gives each device a share of the latent weights and of the optimizer's state (FSDP2).
    """

    strategy: Literal["single", "ddp", "fsdp"]
    devices: int
    num_nodes: int

    def __post_init__(self) -> None:
        if self.strategy not in ("single", "ddp", "fsdp"):
            raise ValueError(
                f"trainer.strategy={self.strategy!r} is not known; choose single, ddp or fsdp"
            )
        for key in ("devices", "num_nodes"):
            if getattr(self, key) < 1:
                raise ValueError(f"trainer.{key}={getattr(self, key)} must be at least 1")
        if self.strategy == "single" and self.world_size > 1:
            raise ValueError(
                f"trainer.devices={self.devices} on num_nodes={self.num_nodes} with "
                "strategy=single; choose trainer=ddp or trainer=fsdp for more than one device"
            )

    @property
    def world_size(self) -> int:
        """Number of processes, and of devices, on all machines."""
        return self.devices * self.num_nodes


SINGLE = TrainerConfig("single", 1, 1)


def require_devices(config: TrainerConfig) -> None:
    """Refuse a run that these machines, or whoever started the processes, cannot give.

    Raises:
        ValueError: there are fewer GPUs, or another number of processes was started.
    """
    num_gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and config.devices > num_gpus:
        raise ValueError(
            f"trainer.devices={config.devices}, but this machine has {num_gpus} GPUs; lower it, or "
            "spread the run with trainer.num_nodes"
        )
    started = int(os.environ.get("WORLD_SIZE", config.world_size))
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    if started != config.world_size or rank >= config.world_size:
        raise ValueError(
            f"trainer.strategy={config.strategy} with devices={config.devices} and num_nodes="
            f"{config.num_nodes} needs {config.world_size} processes, but "
            f"{max(started, rank + 1)} were started; make them agree"
        )


def trainer_arguments(config: TrainerConfig) -> dict[str, Any]:
    """Return what lightning.Trainer is told about devices. gloo on CPUs, nccl on GPUs.

    Processes that nobody started yet, torchrun or srun, are started on this machine by Lightning.
    """
    return {
        "accelerator": "auto",
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "strategy": _strategy(config),
        "use_distributed_sampler": False,
    }


def wait_for_all() -> None:
    """Return once every process of the run is here."""
    if distributed.is_initialized():
        distributed.barrier()


def _strategy(config: TrainerConfig) -> Strategy | Literal["auto"]:
    if config.strategy == "single":
        return "auto"
    if config.strategy == "ddp":
        return DDPStrategy()
    return ModelParallelStrategy(data_parallel_size=config.world_size, tensor_parallel_size=1)
