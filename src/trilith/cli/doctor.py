"""`trilith doctor`: is this machine ready? One line a check, each with what to do."""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trilith.cli.project import project_folder

_FREE_BYTES_WARN = 10 * 10**9
_FREE_BYTES_FAIL = 10**9
# What the kernels and torch gain most from.
_CPU_FEATURES = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


class Check(NamedTuple):
    """One line of the doctor: what was looked at, how it is, what to do."""

    status: Literal["ok", "warn", "fail"]
    name: str
    text: str


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("doctor", help="check this machine and installation")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print all checks; return 1 if one failed."""
    failed = False
    for check in all_checks(project_folder() or Path.cwd()):
        print(f"{check.status:<4}  {check.name:<12}  {check.text}", flush=True)
        failed |= check.status == "fail"
    return int(failed)


def all_checks(project: Path) -> Iterator[Check]:
    """Look at everything, one check at a time."""
    yield check_python()
    yield check_torch()
    yield check_threads()
    yield check_compiler()
    yield check_kernels()
    yield check_cpu()
    yield check_gpu()
    yield check_program("git", missing="install git: dvc and the run records need it")
    yield check_program("dvc", missing="pip install -e . in this environment: dvc runs the graph")
    yield check_disk(project)
    yield check_versions(project / "constraints.txt")
    yield check_tracking(os.environ.get("WANDB_MODE"))


def check_python() -> Check:
    """Python 3.11 to 3.13: Hydra 1.3 stops before 3.14."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("ok", "python", version)
    return Check("fail", "python", f"{version}; use 3.11, 3.12 or 3.13")


def check_torch() -> Check:
    """Torch imports."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("fail", "torch", f"does not import ({error}); pip install torch")
    return Check("ok", "torch", torch.__version__)


def check_threads() -> Check:
    """Torch uses the cores that this process may use."""
    try:
        import torch
    except (ImportError, OSError):
        return Check("fail", "threads", "unknown without torch")
    affinity = getattr(os, "sched_getaffinity", None)
    num_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    num_threads = torch.get_num_threads()
    text = f"torch uses {num_threads} of {num_cores} cores"
    if num_threads > num_cores:
        return Check("warn", "threads", f"{text}; set OMP_NUM_THREADS={num_cores}")
    return Check("ok", "threads", text)


def check_compiler() -> Check:
    """A C compiler builds the native kernels that this installation may lack."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found:
        return Check("ok", "compiler", found)
    return Check("warn", "compiler", "none; install gcc or clang, unless the kernels are there")


def check_kernels() -> Check:
    """The native kernels are in the package, in the cache, or can be compiled now."""
    try:
        from trilith.kernels.native_build import library_path, packaged_name

        path = library_path()
    except (ImportError, OSError, RuntimeError) as problem:
        return Check(
            "warn", "kernels", f"none ({problem}); the portable torch path runs, slower by far"
        )
    is_packaged = path.name == packaged_name()
    origin = "built at install" if is_packaged else "compiled on first use"
    return Check("ok", "kernels", f"{origin}: {path}")


def check_cpu() -> Check:
    """Instructions for products of int8."""
    flags = _cpu_flags()
    found = [name for name in _CPU_FEATURES if name in flags]
    if found:
        return Check("ok", "cpu", f"{platform.machine()} with {', '.join(found)}")
    return Check(
        "warn", "cpu", f"{platform.machine()}, no int8 instructions found; expect the slow path"
    )


def check_gpu() -> Check:
    """A CUDA device is an option, never a need."""
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError) as error:
        return Check("warn", "gpu", f"cannot be asked ({error}); check the driver")
    return Check("ok", "gpu", ", ".join(names) or "none; everything runs on the CPU")


def check_program(name: str, *, missing: str) -> Check:
    """A program is on the path or beside this Python."""
    beside = Path(sys.executable).parent
    found = shutil.which(name) or shutil.which(name, path=str(beside))
    return Check("ok", name, found) if found else Check("fail", name, f"not found; {missing}")


def check_disk(folder: Path) -> Check:
    """Room for tokens, checkpoints and packed models."""
    free_bytes = shutil.disk_usage(folder).free
    text = f"{free_bytes / 10**9:.1f} GB free in {folder}"
    if free_bytes < _FREE_BYTES_FAIL:
        return Check("fail", "disk", f"{text}; free at least {_FREE_BYTES_FAIL // 10**9} GB")
    if free_bytes < _FREE_BYTES_WARN:
        return Check("warn", "disk", f"{text}; larger models need more")
    return Check("ok", "disk", text)


def check_versions(constraints: Path) -> Check:
    """Installed packages are those that were tested together."""
    if not constraints.is_file():
        return Check("warn", "versions", f"no {constraints.name} here to compare with")
    pinned = dict(_pins(constraints.read_text()))
    installed = {name: _installed_version(name) for name in pinned}
    differing = [
        f"{name} {installed[name]} (tested: {version})"
        for name, version in pinned.items()
        if installed[name] not in (None, version)
    ]
    if not differing:
        known = sum(version is not None for version in installed.values())
        return Check("ok", "versions", f"{known} packages as in {constraints.name}")
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return Check(
        "warn",
        "versions",
        f"{', '.join(differing[:5])}{more}; pip install -c {constraints.name} -e .",
    )


def check_tracking(mode: str | None) -> Check:
    """How Weights & Biases runs when the environment decides."""
    if mode is None:
        return Check("ok", "wandb", "the configuration decides (tracking=offline by default)")
    if mode in ("online", "offline", "disabled"):
        return Check("ok", "wandb", f"WANDB_MODE={mode}")
    return Check(
        "fail", "wandb", f"WANDB_MODE={mode}; set online, offline or disabled, or unset it"
    )


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _pins(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, version = line.partition("#")[0].strip().partition("==")
        if equals:
            yield name.strip(), version.partition(";")[0].strip()


def _installed_version(name: str) -> str | None:
    try:
        # Without the local part: 2.13.0+cpu is the tested 2.13.0.
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
