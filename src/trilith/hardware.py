"""What the machine can do: its name, threads, and the peak that MFU is measured against."""

import ctypes
import platform
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

_MALLOC_OPTIONS = {"trim_threshold": -1, "mmap_threshold": -3}
_KEEP_BYTES = 1 << 30
_MATMUL_SIZE = 1024

# Dense peaks in TFLOP/s with bf16 inputs and float32 accumulation, from the makers' data sheets.
BF16_PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L20": 119.5,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 5080": 112.6,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class HardwareConfig:
    """CPU threads of every stage, and the peak for MFU in TFLOP/s (null: table or measured)."""

    threads: int
    peak_tflops: float | None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"hardware.threads={self.threads} must be at least 1")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"hardware.peak_tflops={self.peak_tflops} must be positive or null")


def prepare_cpu(threads: int) -> None:
    """Fix the number of threads, and let glibc keep freed memory.

    By default glibc returns each large activation to the system and faults its pages in again:
    keeping them makes an eager training step on two cores 13% shorter.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in _MALLOC_OPTIONS.values():
            libc.mallopt(option, _KEEP_BYTES)


def device_name() -> str:
    """Name of the GPU, else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _cpu_name()


class Peak(NamedTuple):
    """What MFU is a share of: FLOP/s, and where the figure comes from."""

    flops: float
    name: str


def find_peak(config: HardwareConfig) -> Peak:
    """Return the peak for MFU: the configured one, the table's, or a measured matmul.

    Raises:
        ValueError: the GPU is not in the table, and none is configured.
    """
    if config.peak_tflops is not None:
        flops = config.peak_tflops * 1e12
        return Peak(flops, f"{_tflops(flops)}, set as hardware.peak_tflops")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for key, tflops in BF16_PEAK_TFLOPS.items():
            if key in name.replace("GeForce ", ""):
                flops = tflops * 1e12
                return Peak(flops, f"{key} bf16 {_tflops(flops)}, data sheet")
        raise ValueError(f"no peak is known for {name}; set hardware.peak_tflops")
    flops = measured_matmul_flops()
    return Peak(flops, f"float32 matmul {_tflops(flops)}, measured")


def measured_matmul_flops(num_repeats: int = 20) -> float:
    """FLOP/s of the fastest of some float32 matmuls on this CPU with its current threads."""
    a = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE)
    b = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE)
    fastest_s = float("inf")
    for _ in range(num_repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / fastest_s


def _tflops(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 (a device file, not a path of ours)
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
