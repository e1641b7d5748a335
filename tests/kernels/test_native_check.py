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
_PRODUCTS = Path(__file__).parent / "native_check.c"
_MODELS = Path(__file__).parent / "native_check_model.c"
_FLAGS = [flag for flag in native_build.FLAGS if flag not in ("-shared", "-fPIC")]


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(compiler: list[str], program: Path, to: Path, *flags: str) -> Path:
    sources = sorted(_SOURCES.glob("*.c"))
    _run(*compiler, *_FLAGS, *flags, f"-I{_SOURCES}", "-o", to, program, *sources, "-lm")
    return to


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arguments"),
    [(_PRODUCTS, [str(NUM_SHAPES)]), (_MODELS, [])],
    ids=["products", "models"],
)
def test_neon_has_the_bits_of_the_scalar_kernels_and_of_this_processor(
    program: Path, arguments: list[str], tmp_path: Path
) -> None:
    for needed in ("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed}; apt-get install gcc-aarch64-linux-gnu qemu-user")
    arm = _build(["aarch64-linux-gnu-gcc"], program, tmp_path / "arm", "-static")
    # "max" is a processor with everything that the emulator knows; the other one lacks dotprod.
    *old, _ = _run("qemu-aarch64", "-cpu", "cortex-a53", arm, *arguments).split()
    assert old == ["scalar"]
    *kernels, found = _run("qemu-aarch64", "-cpu", "max", arm, *arguments).split()
    assert kernels == ["scalar", "neon"]
    here = _build(_compiler(), program, tmp_path / "here")
    assert _run(here, *arguments).split()[-1] == found


def test_vnni_without_byte_permutes_has_the_bits_of_the_scalar_kernels(tmp_path: Path) -> None:
    program = _build(_compiler(), _PRODUCTS, tmp_path / "program", "-DWITHOUT_VBMI")
    if "vnni" not in _run(program, "0").split():
        pytest.skip("this processor has no vnni")
    assert "vnni" in _run(program, str(NUM_SHAPES)).split()


def _compiler() -> list[str]:
    try:
        return native_build.find_compiler()
    except RuntimeError as problem:
        pytest.skip(str(problem))
