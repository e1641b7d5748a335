"""What the CPU engine is measured against: llama.cpp, its fork ik_llama.cpp, and the memory itself.

llama.cpp is built from the source distribution of llama-cpp-python, with the flags of this machine.
ik_llama.cpp comes as the wheel of ik-llama-cpp-python, built for AVX2; its formats for BitNet stand
in for those of bitnet.cpp, which no package holds.
"""

import ctypes
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from random_models import SHAPES, write_gguf
from trilith.evaluation.speed import Speed
from trilith.files import replacing
from trilith.kernels.native_build import find_compiler

LLAMA_CPP = "llama-cpp-python==0.3.36"
IK_LLAMA_CPP = "ik-llama-cpp-python==0.1.5"
_CMAKE_OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"),
    *("-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"),
    *("-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_CURL=OFF"),
)
_LIBRARIES = (
    "src/libllama.a",
    *(f"ggml/src/libggml{part}.a" for part in ("", "-cpu", "-base")),
)
# gcc 12 believes that _tile_loadconfig reads 8 bytes and drops the stores to the rest, so that
# Q4_0 and Q8_0 end in a general protection fault on processors with AMX.
_AMX_SOURCE = "ggml/src/ggml-cpu/amx/mmq.cpp"
_AMX_CALL = "    _tile_loadconfig(&tc);"
_AMX_FIX = '    __asm__ volatile("" :: "r"(&tc) : "memory");\n'
_BUFFER_BYTES = 512 * 2**20
_DRIVER = Path(__file__).parent / "llama_bench.c"


class LlamaCpp:
    """llama.cpp below `folder`: its library is built there once, and driven by llama_bench.c."""

    name = "llama.cpp"
    quantizations: tuple[str, ...] = ("TQ2_0", "TQ1_0", "Q4_0", "Q8_0")
    _program_name = "llama_bench"

    def __init__(self, folder: Path) -> None:
        """Build what is not there yet; ten minutes and more on two cores."""
        self._folder = folder
        self._program = folder / self._program_name
        if not self._program.is_file():
            self._build()

    def model(self, shape: str, quantization: str) -> Path:
        """Return the shape as a GGUF file of a quantization; made if it is not there."""
        full = self._folder / f"{shape}-f16.gguf"
        if not full.is_file():
            with replacing(full) as partial:
                write_gguf(SHAPES[shape], partial)
        path = self._folder / f"{shape}-{quantization}.gguf"
        if not path.is_file():
            with replacing(path) as partial:
                _run([self._program, "quantize", full, partial, quantization])
        return path

    def measure(self, path: Path, *, prompt: int, decode: int, threads: int) -> Speed:
        """Time one prompt and one continuation, each after a warm-up."""
        told = _run([self._program, "time", path, prompt, decode, threads])
        return Speed(*map(float, told.split()))

    def _build(self) -> None:
        source, build = self._folder / "llama.cpp", self._folder / "build"
        if not source.is_dir():
            _unpack(self._folder, to=source)
        amx = source / _AMX_SOURCE
        text = amx.read_text()
        if _AMX_FIX not in text:
            amx.write_text(text.replace(_AMX_CALL, _AMX_FIX + _AMX_CALL))
        _run(["cmake", "-S", source, "-B", build, *_CMAKE_OPTIONS])
        _run(["nice", "cmake", "--build", build, "--target", "llama", "-j", "2"])
        includes = (f"-I{source}/include", f"-I{source}/ggml/include")
        _run(["cc", "-O2", "-c", *includes, _DRIVER, "-o", build / "llama_bench.o"])
        libraries = [build / name for name in _LIBRARIES]
        objects = [build / "llama_bench.o", *libraries]
        _run(["c++", *objects, "-fopenmp", "-pthread", "-ldl", "-o", self._program])


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp below `folder`, as its wheel has it."""

    name = "ik_llama.cpp"
    quantizations = ("IQ2_BN", "IQ1_BN")
    _program_name = "ik_llama_bench"

    def _build(self) -> None:
        wheel = self._folder / "ik_llama.cpp"
        if not wheel.is_dir():
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
            _run([*pip, "--dest", self._folder, IK_LLAMA_CPP])
            (archive,) = self._folder.glob("ik_llama_cpp_python-*.whl")
            with replacing(wheel) as partial, zipfile.ZipFile(archive) as content:
                content.extractall(partial)
        libraries = (wheel / "lib64").absolute()
        linked = (f"-L{libraries}", "-lllama", "-lggml", f"-Wl,-rpath,{libraries}")
        _run(
            ["cc", "-O2", "-DIK_LLAMA", f"-I{wheel}/include", _DRIVER, "-o", self._program, *linked]
        )


def read_bandwidth(folder: Path) -> Callable[[int], float]:
    """Return a function from threads to bytes/s read from memory by a plain C loop."""
    library = folder / "read_bandwidth.so"
    source = Path(__file__).parent / "read_bandwidth.c"
    flags = ("-O3", "-march=native", "-shared", "-fPIC", "-pthread")
    _run([*find_compiler(), *flags, "-o", library, source])
    functions = ctypes.CDLL(str(library))
    functions.make_buffer.restype = ctypes.c_void_p
    functions.make_buffer.argtypes = [ctypes.c_int64]
    functions.read_buffer.restype = ctypes.c_double
    functions.read_buffer.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    buffer = functions.make_buffer(_BUFFER_BYTES)
    if not buffer:
        raise MemoryError(f"no memory for a buffer of {_BUFFER_BYTES} bytes")

    def read(threads: int) -> float:
        seconds = functions.read_buffer(buffer, _BUFFER_BYTES, threads)
        assert seconds > 0
        return _BUFFER_BYTES / seconds

    return read


def _unpack(folder: Path, *, to: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    _run([*pip, "--dest", folder, LLAMA_CPP])
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    (folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp").rename(to)


def _run(command: list) -> str:
    words = [str(word) for word in command]
    # How threads of OpenMP wait is each program's own choice.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed with status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout
