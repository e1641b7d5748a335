"""The native library: compiled at install or on first use, loaded with ctypes.

An installation has it beside its sources, a checkout in the user's cache. No part of CPython's ABI
is used, so one build serves every Python on the machine. setup.py runs this file by itself: it
imports nothing else of the package.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "native"
# Contracted to fused multiply-adds, products would lose the bits of the torch path.
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_TIMEOUT_S = 300
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class WeightStruct(ctypes.Structure):
    """`weight` in trilith.h."""

    _fields_ = (
        ("codes", _POINTER),
        ("levels", _POINTER),
        ("factor", _POINTER),
        ("num_out", _LONG),
        ("num_in", _LONG),
        ("num_groups", _LONG),
        ("layout", _LONG),
        ("offset", _LONG),
    )


class RowsStruct(ctypes.Structure):
    """`rows` in rows.h."""

    _fields_ = (
        ("values", _POINTER),
        ("scale", _POINTER),
        ("kind", _LONG),
        ("num_rows", _LONG),
        ("width", _LONG),
        ("group_size", _LONG),
    )


class QuantizedStruct(ctypes.Structure):
    """`quantized` in trilith.h."""

    _fields_ = (("activations", _POINTER), ("is_bfloat16", _LONG))


class StepWeightStruct(ctypes.Structure):
    """`step_weight` in step.c."""

    _fields_ = (
        ("latent", _POINTER),
        ("scale", _POINTER),
        ("numerators", _POINTER),
        ("quantized", _POINTER),
        ("is_bfloat16", _LONG),
        ("num_rows", _LONG),
        ("num_in", _LONG),
        ("num_groups", _LONG),
        ("scale_rows", _LONG),
    )


class Native(NamedTuple):
    """The loaded library, or what stands in its way."""

    library: ctypes.CDLL | None
    problem: str


@cache
def load_native() -> Native:
    """Load the library, compiling it if this machine has not done so; asked once a process."""
    try:
        return Native(_declare(_open(library_path())), "")
    except (OSError, RuntimeError) as error:
        return Native(None, str(error))


def library_path() -> Path:
    """Return where the library for these sources lies: in the package, else compiled if needed.

    A compiler that $CC names is used, whatever the package holds.

    Raises:
        RuntimeError: there is no C compiler, or it fails.
        OSError: the cache folder cannot be written.
    """
    packaged = _SOURCES / packaged_name()
    if packaged.is_file() and not os.environ.get("CC"):
        return packaged
    return _compiled_path()


def packaged_name() -> str:
    """Return the name of a library in the package that was made of these sources for this machine.

    A library of other sources, flags or another machine has another name, and is not looked at.
    """
    return _name_for([])


def compile_into(folder: Path) -> Path:
    """Compile the library of a package that is being built; return its path.

    Raises:
        RuntimeError: there is no C compiler, or it fails.
        OSError: the folder cannot be written.
    """
    path = folder / packaged_name()
    _compile(find_compiler(), to=path)
    return path


def _compiled_path() -> Path:
    compiler = find_compiler()
    path = _cache_folder() / _name_for([*compiler, _run([*compiler, "--version"])])
    if not path.is_file():
        _compile(compiler, to=path)
    return path


def _name_for(compiler: list[str]) -> str:
    sources = sorted(_SOURCES.glob("*.[ch]"))
    content = [path.name.encode() + b"\0" + path.read_bytes() for path in sources]
    about = [word.encode() for word in (*compiler, platform.machine(), *FLAGS)]
    key = hashlib.sha256(b"\0".join([*content, *about])).hexdigest()
    return f"kernels-{key[:24]}.so"


def find_compiler() -> list[str]:
    """Return the command of the C compiler: $CC with its options, else cc, gcc or clang.

    Raises:
        RuntimeError: there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named,) if named else (["cc"], ["gcc"], ["clang"]):
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    raise RuntimeError(
        f"no C compiler ({named[0] if named else 'cc, gcc or clang'}) is on the path"
    )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "trilith"
    # What lies here is run: nobody else may write to it.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _compile(compiler: list[str], *, to: Path) -> None:
    """Compile beside the goal and rename, so that others see a whole library or none."""
    with tempfile.TemporaryDirectory(dir=to.parent, prefix="build-") as folder:
        try:
            library = _compiled_in(Path(folder), [*compiler, *FLAGS, *_extra_flags()])
        except RuntimeError:
            # Compilers of before 2021 do not know AMX.
            if not _extra_flags():
                raise
            library = _compiled_in(Path(folder), [*compiler, *FLAGS])
        library.replace(to)
    log.info("compiled the native kernels with %s: %s", compiler[0], to)


def _compiled_in(folder: Path, command: list[str]) -> Path:
    """Each source by itself, as many at a time as there are processors; then all of them linked."""

    def compile_one(source: Path) -> str:
        to = str(folder / f"{source.name}.o")
        _run([*command, "-c", "-o", to, str(source)])
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted(_SOURCES.glob("*.c"))))
    library = folder / "kernels.so"
    _run([*command, "-shared", "-o", str(library), *objects])
    return library


def _extra_flags() -> list[str]:
    """All else is in the sources: each function names the instructions that it needs."""
    return ["-DHAVE_AMX"] if platform.machine() in ("x86_64", "AMD64") else []


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} took more than {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise RuntimeError(f"{command[0]} failed with status {done.returncode}: {first}")
    return done.stdout


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        # A library cut short by a full disk, or copied from another system: build it once more.
        if path.parent != _SOURCES:
            path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled_path()))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.trilith_supports.argtypes = [_INT]
    weight = ctypes.POINTER(WeightStruct)
    library.trilith_linear.argtypes = [weight, _POINTER, _POINTER, _LONG, _INT, _LONG]
    kept = ctypes.POINTER(QuantizedStruct)
    library.trilith_linear_keeping.argtypes = [
        *(weight, _POINTER, _POINTER, kept, _LONG, _INT, _LONG)
    ]
    library.trilith_tile.argtypes = [weight, _POINTER, _POINTER, _POINTER, _LONG]
    library.trilith_tile.restype = None
    library.trilith_repack.argtypes = [weight, _POINTER, _LONG, _POINTER, _POINTER, _LONG]
    step = ctypes.POINTER(StepWeightStruct)
    for function in (library.trilith_refine, library.trilith_step_weight):
        function.argtypes = [step, _INT, _LONG]
        function.restype = None
    rows = ctypes.POINTER(RowsStruct)
    library.trilith_multiply_rows.argtypes = [rows, _POINTER, _LONG, _POINTER, _INT, _LONG]
    library.trilith_forward_bytes.argtypes = [_POINTER, _LONG, _LONG]
    library.trilith_forward_bytes.restype = _LONG
    # model, sequences and their number, tokens, room, logits.
    library.trilith_forward.argtypes = [
        *(_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _INT, _LONG)
    ]
    return library
