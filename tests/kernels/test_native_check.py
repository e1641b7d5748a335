"""The kernels in a program of their own, for processors that this one is not.

Arm: compiled across and run by an emulator. AVX-512 VNNI without byte permutes: compiled so.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from trilith.kernels import native_build

NUM_SHAPES = 500
_SOURCES = Path(native_build.__file__).parent / "native"
_CHECK = Path(__file__).parent / "native_check.c"
_FLAGS = [flag for flag in native_build.FLAGS if flag not in ("-shared", "-fPIC")]


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(compiler: list[str], to: Path, *flags: str) -> Path:
    sources = sorted(_SOURCES.glob("*.c"))
    _run(*compiler, *_FLAGS, *flags, f"-I{_SOURCES}", "-o", to, _CHECK, *sources, "-lm")
    return to


@pytest.mark.slow
def test_neon_has_the_bits_of_the_scalar_kernels_and_of_this_processor(tmp_path: Path) -> None:
    for program in ("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}; apt-get install gcc-aarch64-linux-gnu qemu-user")
    arm = _build(["aarch64-linux-gnu-gcc"], tmp_path / "arm", "-static")
    # "max" is a processor with everything that the emulator knows; the other one lacks dotprod.
    assert _run("qemu-aarch64", "-cpu", "cortex-a53", arm, "0").split()[:-1] == ["scalar"]
    *kernels, found = _run("qemu-aarch64", "-cpu", "max", arm, str(NUM_SHAPES)).split()
    assert kernels == ["scalar", "neon"]
    here = _build(_compiler(), tmp_path / "here")
    assert _run(here, str(NUM_SHAPES)).split()[-1] == found


def test_vnni_without_byte_permutes_has_the_bits_of_the_scalar_kernels(tmp_path: Path) -> None:
    program = _build(_compiler(), tmp_path / "program", "-DWITHOUT_VBMI")
    if "vnni" not in _run(program, "0").split():
        pytest.skip("this processor has no vnni")
    assert "vnni" in _run(program, str(NUM_SHAPES)).split()


def _compiler() -> list[str]:
    try:
        return native_build.find_compiler()
    except RuntimeError as problem:
        pytest.skip(str(problem))
