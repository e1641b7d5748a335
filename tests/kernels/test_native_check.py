"""The kernels in a program of their own, for processors that this one is not, and by clang.

Arm: compiled across and run by an emulator. AVX-512 VNNI and AMX: their intrinsics in plain C.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trilith.kernels import available_isas, native_build

NUM_SHAPES = 500
_HERE = Path(__file__).parent
_SOURCES = Path(native_build.__file__).parent / "native"
# Programs and their arguments.
_PROGRAMS = {"products": ("native_check.c", str(NUM_SHAPES)), "models": ("native_check_model.c",)}
each_program = pytest.mark.parametrize("program", _PROGRAMS)
Build = Callable[[str], Path]


def _run(*command: str | Path, **changes: str) -> str:
    words = [str(word) for word in command]
    environment = os.environ | changes
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _builder(folder: Path, compiler: list[str], sources: list[Path]) -> Build:
    """Compile the kernels once; what is returned adds a program. Emulated code need not be fast."""
    command = [*compiler, *native_build.FLAGS, "-O1", f"-I{_SOURCES}"]

    def compile_one(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        _run(*command, "-c", "-o", to, source)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))

    def build(program: str) -> Path:
        to = folder / program
        _run(*command, "-o", to, _HERE / _PROGRAMS[program][0], *objects, "-lm")
        return to

    return build


def _need(*commands: str, packages: str) -> None:
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"no {command}; apt-get install {packages}")


@pytest.fixture(scope="module", params=["gcc", "clang"])
def for_arm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Build:
    # The libraries of the one serve both.
    _need("aarch64-linux-gnu-gcc", "qemu-aarch64", packages="gcc-aarch64-linux-gnu qemu-user")
    compiler = ["aarch64-linux-gnu-gcc"]
    if request.param == "clang":
        _need("clang", packages="clang")
        compiler = ["clang", "--target=aarch64-linux-gnu", "-I/usr/aarch64-linux-gnu/include"]
    folder = tmp_path_factory.mktemp("arm")
    return _builder(folder, [*compiler, "-static"], sorted(_SOURCES.glob("*.c")))


@pytest.fixture(scope="module")
def by_clang(tmp_path_factory: pytest.TempPathFactory) -> Build:
    _need("clang", packages="clang")
    folder = tmp_path_factory.mktemp("clang")
    return _builder(folder, ["clang", "-DHAVE_AMX"], sorted(_SOURCES.glob("*.c")))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Build:
    compiler = _compiler()
    if "avx2" not in available_isas():
        pytest.skip("what is not emulated needs AVX2")
    emulation = ["-include", str(_HERE / "emulated.h"), "-D_GNU_SOURCE=", "-Wno-psabi"]
    others = {path for path in _SOURCES.glob("*.c") if path.name != "cpu.c"}
    sources = sorted({*others, _HERE / "emulated_cpu.c"})
    return _builder(tmp_path_factory.mktemp("emulated"), [*compiler, *emulation], sources)


def _on_this_processor(program: str, folder: Path) -> str:
    source, *arguments = _PROGRAMS[program]
    library = native_build.library_path()
    to = folder / "here"
    _run(*_compiler(), f"-I{_SOURCES}", "-o", to, _HERE / source, library, "-lm")
    return _run(to, *arguments)


@pytest.mark.slow
@each_program
def test_neon_has_the_bits_of_the_scalar_kernels_and_of_this_processor(
    for_arm: Build, program: str, tmp_path: Path
) -> None:
    arguments = _PROGRAMS[program][1:]
    binary = for_arm(program)
    # "max" is a processor with everything that the emulator knows; the other one lacks dotprod.
    *old, _ = _run("qemu-aarch64", "-cpu", "cortex-a53", binary, *arguments).split()
    assert old == ["scalar"]
    *kernels, found = _run("qemu-aarch64", "-cpu", "max", binary, *arguments).split()
    assert kernels == ["scalar", "neon"]
    assert _on_this_processor(program, tmp_path).split()[-1] == found


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"WITHOUT_VBMI": "1"}], ids=["all", "without VBMI"])
@each_program
def test_vnni_and_amx_have_the_bits_of_the_scalar_kernels_and_of_this_processor(
    emulated: Build, program: str, changes: dict[str, str], tmp_path: Path
) -> None:
    *kernels, found = _run(emulated(program), *_PROGRAMS[program][1:], **changes).split()
    assert kernels == ["scalar", "avx2", "vnni", "amx"]
    assert _on_this_processor(program, tmp_path).split()[-1] == found


@pytest.mark.slow
@each_program
def test_clang_makes_kernels_of_the_same_bits(
    by_clang: Build, program: str, tmp_path: Path
) -> None:
    *kernels, found = _run(by_clang(program), *_PROGRAMS[program][1:]).split()
    assert kernels == available_isas()
    assert _on_this_processor(program, tmp_path).split() == [*kernels, found]


def _compiler() -> list[str]:
    try:
        return native_build.find_compiler()
    except RuntimeError as problem:
        pytest.skip(str(problem))
