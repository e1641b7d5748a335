"""The table of GPUs, and the names that find them."""

from pathlib import Path

import pytest
import torch

from trilith.hardware import DEVICES, HardwareConfig, device_named, find_peak, host_memory_bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L20", "L20"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA GeForce RTX 5080", "RTX 5080"),
        ("rtx5080", "RTX 5080"),
        ("a100-80gb", "A100 80GB"),
        ("h100", "H100"),
    ],
)
def test_a_name_of_a_driver_or_a_user_finds_its_gpu(name: str, expected: str) -> None:
    assert device_named(name) is DEVICES[expected]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H20",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "A100",
        "L",
        "",
    ],
)
def test_what_only_resembles_a_gpu_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not in the table; choose one of .*RTX 5080"):
        device_named(name)


def test_no_two_gpus_share_a_name() -> None:
    for key, device in DEVICES.items():
        for name in (key, *device.driver_names):
            assert device_named(name) is device


def test_the_machine_has_as_much_memory_as_the_system_says(tmp_path: Path) -> None:
    with open("/proc/meminfo") as file:  # noqa: PTH123
        total = next(line for line in file if line.startswith("MemTotal"))
    physical = int(total.split()[1]) * 1024
    nothing = tmp_path / "nothing"
    assert host_memory_bytes(cgroups=nothing, membership=nothing) == physical
    assert 0 < host_memory_bytes() <= physical


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/app/part", {"app/part/memory.max": "3000"}, 3000),
        ("0::/app/part", {"app/part/memory.max": "max", "app/memory.max": "2000"}, 2000),
        ("0::/app/part", {"app/part/memory.max": "3000", "app/memory.max": "2000"}, 2000),
        ("0::/", {"memory.max": "4000"}, 4000),
        ("5:cpu:/x\n4:memory:/app\n0::/", {"memory/app/memory.limit_in_bytes": "5000"}, 5000),
        # A container of version 1 sees its own group at the root.
        ("4:cpu,memory:/docker/ab:c", {"memory/memory.limit_in_bytes": "6000"}, 6000),
        ("4:memory:/app", {"memory/app/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:memory:/app", {"memory/other/memory.limit_in_bytes": "7000"}, None),
        ("0::/app", {"app/memory.max": "max"}, None),
    ],
)
def test_a_container_has_as_much_memory_as_its_groups_allow(
    tmp_path: Path, membership: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "membership").write_text(membership + "\n")
    for name, limit in limits.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(limit + "\n")
    nothing = tmp_path / "nothing"
    physical = host_memory_bytes(cgroups=nothing, membership=nothing)
    found = host_memory_bytes(cgroups=tmp_path / "groups", membership=tmp_path / "membership")
    assert found == (expected or physical)


def test_a_configured_peak_is_the_peak_of_every_precision() -> None:
    for is_bfloat16 in (False, True):
        peak = find_peak(HardwareConfig(1, 2.5), is_bfloat16=is_bfloat16)
        assert peak.flops == 2.5e12
        assert "hardware.peak_tflops" in peak.name


def test_a_measured_peak_says_what_was_multiplied() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU's peak comes from its data sheet")
    config = HardwareConfig(1, None)
    assert find_peak(config, is_bfloat16=False).name.startswith("float32 matmul")
    both = find_peak(config, is_bfloat16=True)
    assert both.name.split()[0] in ("float32", "bfloat16")
    assert both.flops > 1e8
