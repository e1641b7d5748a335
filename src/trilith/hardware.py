"""What machines can do: name, threads, memory, and the peak that MFU is measured against."""

import ctypes
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

_MALLOC_OPTIONS = {"trim_threshold": -1, "mmap_threshold": -3}
_KEEP_BYTES = 1 << 30
_MATMUL_SIZE = 1024
_MATMUL_LIMIT_S = 1.0
_GB = 10**9


class Device(NamedTuple):
    """A GPU by its maker's data sheet.

    Attributes:
        peak_tflops: dense bfloat16 products with float32 sums.
        memory_bytes: the sheet's GB as 10^9; what a driver gives lies a little above.
        driver_names: what the driver calls it beside the name itself, case and marks left out.
    """

    peak_tflops: float
    memory_bytes: int
    driver_names: tuple[str, ...] = ()


DEVICES = {
    "B200": Device(2250.0, 180 * _GB),
    "H200": Device(989.0, 141 * _GB),
    "H100": Device(989.0, 80 * _GB, ("H100 80GB HBM3",)),
    "H100 PCIe": Device(756.0, 80 * _GB),
    "H100 NVL": Device(835.0, 94 * _GB),
    "A100 80GB": Device(312.0, 80 * _GB, ("A100-SXM4-80GB", "A100 80GB PCIe")),
    "A100 40GB": Device(312.0, 40 * _GB, ("A100-SXM4-40GB", "A100-PCIE-40GB")),
    "A40": Device(149.7, 48 * _GB),
    "A10": Device(125.0, 24 * _GB),
    "L40S": Device(362.0, 48 * _GB),
    "L40": Device(181.0, 48 * _GB),
    "L20": Device(119.5, 48 * _GB),
    "L4": Device(121.0, 24 * _GB),
    "RTX 5090": Device(209.5, 32 * _GB),
    "RTX 5080": Device(112.6, 16 * _GB),
    "RTX 4090": Device(165.2, 24 * _GB),
    "RTX 4080": Device(97.5, 16 * _GB),
    "RTX 3090": Device(71.0, 24 * _GB),
}


# What torch takes beside tensors: on a CPU 270 MB to run and 390 MB to train (resident, 2.13); on a
# GPU the CUDA context, libraries and workspaces: assumed, no GPU was at hand to measure it.
OVERHEAD_BYTES = {"cpu": 400 * 10**6, "cuda": 600 * 10**6}


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


def usable_device(name: str) -> torch.device:
    """Return the device of that name, as torch calls it.

    Raises:
        ValueError: it is neither a CPU nor a CUDA device, or not in this machine.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device {name!r} is not known; choose cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if kind == "cuda" and not count:
        raise ValueError(
            f"no CUDA device; torch {torch.__version__} finds none for device {name!r}: use cpu, "
            "or install a driver and a torch build that fit each other (trilith doctor)"
        )
    if kind == "cuda" and int(index or 0) >= count:
        raise ValueError(f"device {name!r} is not there; there are cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def device_name(device: torch.device | None = None) -> str:
    """Name of a device; of None, that of the GPU, else of the processor."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


class Peak(NamedTuple):
    """What MFU is a share of: FLOP/s, and where the figure comes from."""

    flops: float
    name: str


def find_peak(config: HardwareConfig, *, is_bfloat16: bool) -> Peak:
    """Return the peak for MFU: the configured one, the table's, or a measured matmul.

    Args:
        config: holds what is configured.
        is_bfloat16: a run may multiply in bfloat16; where a CPU is slow at that, its peak is that
            of float32.

    Raises:
        ValueError: the GPU is not in the table, and none is configured.
    """
    if config.peak_tflops is not None:
        flops = config.peak_tflops * 1e12
        return Peak(flops, f"{_tflops(flops)}, set as hardware.peak_tflops")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        try:
            flops = device_named(name).peak_tflops * 1e12
        except ValueError as error:
            raise ValueError(f"{error}; or set hardware.peak_tflops") from None
        return Peak(flops, f"{name} bf16 {_tflops(flops)}, data sheet")
    dtypes = (torch.float32, torch.bfloat16) if is_bfloat16 else (torch.float32,)
    flops, name = max((measured_matmul_flops(dtype), str(dtype)) for dtype in dtypes)
    return Peak(flops, f"{name.removeprefix('torch.')} matmul {_tflops(flops)}, measured")


def device_named(name: str) -> Device:
    """Return the GPU that a user or a driver calls by this name.

    The whole name decides, so that an L40S is no L4 and a laptop's chip no desktop's.

    Raises:
        ValueError: no GPU of the table has that name.
    """
    wanted = _plain(name)
    for key, device in DEVICES.items():
        if wanted in (_plain(known) for known in (key, *device.driver_names)):
            return device
    raise ValueError(f"device {name!r} is not in the table; choose one of {', '.join(DEVICES)}")


def host_memory_bytes(
    *, cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """Bytes of memory that this process may take, swap left out: a container may have fewer.

    Args:
        cgroups: where the system shows its control groups, of version 1 or 2.
        membership: the file that names those of this process.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_memory_limits(cgroups, membership)])


def measured_matmul_flops(dtype: torch.dtype, num_repeats: int = 20) -> float:
    """FLOP/s of the fastest of some matmuls on this CPU with its current threads.

    There is one at least, and none begins after a second: without instructions for bfloat16 one
    takes seconds.
    """
    a, b = torch.randn(2, _MATMUL_SIZE, _MATMUL_SIZE).to(dtype)
    fastest_s = float("inf")
    begin = time.perf_counter()
    for _ in range(num_repeats):
        start = time.perf_counter()
        if start - begin > _MATMUL_LIMIT_S:
            break
        torch.mm(a, b)
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / fastest_s


def _memory_limits(cgroups: Path, membership: Path) -> Iterator[int]:
    """Limits of this process's control groups, and of those around them."""
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root, file = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, file = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = root / name.lstrip("/")
        # In a container the own group may lie at the root, whatever its name outside.
        for folder in {root, own, *(above for above in own.parents if root in above.parents)}:
            text = (folder / file).read_text().strip() if (folder / file).is_file() else "max"
            if text.isdigit():
                yield int(text)


def _plain(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in ("nvidia", "geforce"))


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
