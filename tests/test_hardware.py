"""The table of GPUs, and the names that find them."""

import pytest

from trilith.hardware import DEVICES, device_named, host_memory_bytes


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


def test_the_machine_has_as_much_memory_as_the_system_says() -> None:
    with open("/proc/meminfo") as file:  # noqa: PTH123
        total = next(line for line in file if line.startswith("MemTotal"))
    assert host_memory_bytes() == int(total.split()[1]) * 1024
