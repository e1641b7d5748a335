"""Building the native kernels, choosing among them, and doing without them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trilith.kernels import (
    NativeProduct,
    PackedLinear,
    PackedWeight,
    TorchProduct,
    available_isas,
    pack_weight,
)
from trilith.kernels.choice import ISA_NUMBERS
from trilith.kernels.native_build import find_compiler
from trilith.quant import CODECS, GRIDS, QuantizedWeight

needs_compiler = pytest.mark.skipif(not available_isas(), reason="no C compiler")

# Two layers, so that a line that is logged once a layer would show twice.
PROGRAM = """
import logging, torch
logging.basicConfig(level=logging.WARNING, format="log: %(message)s")
from trilith.kernels import PackedLinear, pack_weight
from trilith.kernels.choice import ISA_NUMBERS
from trilith.quant import CODECS, GRIDS, QuantizedWeight
codes = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
weight = QuantizedWeight(codes, torch.ones(1, 1))
weight = pack_weight(weight, grid=GRIDS["ternary"], codec=CODECS["base3"])
layers = [PackedLinear(weight, activation_bits=8) for _ in range(2)]
print(type(layers[0].product).__name__, layers[1](torch.tensor([1.0, 0.0, 127.0])).item())
"""


def _start(cache: Path, **changes: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TRILITH_KERNELS": "auto"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **changes}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.strip(), [line for line in errors.splitlines() if line.startswith("log: ")]


def _weight() -> PackedWeight:
    codes = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    weight = QuantizedWeight(codes, torch.ones(1, 1))
    return pack_weight(weight, grid=GRIDS["ternary"], codec=CODECS["base3"])


def test_without_a_compiler_torch_runs_and_one_line_says_so(tmp_path: Path) -> None:
    out, logged = _finish(_start(tmp_path, PATH=str(tmp_path), CC=""))
    assert out == "TorchProduct 126.0"
    assert len(logged) == 1 and "no C compiler (cc, gcc or clang)" in logged[0]


def test_with_a_broken_compiler_torch_runs_and_one_line_says_so(tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho fatal error: ouch >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    out, logged = _finish(_start(tmp_path / "cache", CC=str(compiler)))
    assert out == "TorchProduct 126.0"
    assert len(logged) == 1 and "fatal error: ouch" in logged[0]
    assert not list(tmp_path.rglob("*.so*"))


@pytest.fixture
def hasty_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiler, which leaves out what takes it long."""
    path = tmp_path_factory.mktemp("bin") / "hasty"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(find_compiler())} "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


@needs_compiler
@pytest.mark.slow
def test_two_processes_may_build_at_once(tmp_path: Path, hasty_compiler: str) -> None:
    processes = [_start(tmp_path, CC=hasty_compiler) for _ in range(2)]
    assert [_finish(process) for process in processes] == [("NativeProduct 126.0", [])] * 2
    (library,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert library.suffix == ".so"
    # A damaged library is built again.
    library.write_bytes(b"not a library")
    assert _finish(_start(tmp_path, CC=hasty_compiler)) == ("NativeProduct 126.0", [])


def test_an_unwritable_cache_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out, logged = _finish(_start(tmp_path / "file"))
    assert out == "TorchProduct 126.0"
    assert len(logged) == 1


def test_an_unknown_choice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "fastest")
    with pytest.raises(
        ValueError, match="TRILITH_KERNELS=fastest is not known; choose auto, torch"
    ):
        PackedLinear(_weight(), activation_bits=8)


@needs_compiler
def test_what_the_processor_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = [name for name in ISA_NUMBERS if name not in available_isas()]
    if not lacking:
        pytest.skip("this processor has all instruction sets")
    monkeypatch.setenv("TRILITH_KERNELS", lacking[0])
    with pytest.raises(ValueError, match=f"{lacking[0]} cannot run on this processor"):
        PackedLinear(_weight(), activation_bits=8)


@needs_compiler
def test_the_choice_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "scalar")
    product = PackedLinear(_weight(), activation_bits=8).product
    assert isinstance(product, NativeProduct) and product.isa.name == "scalar"
    monkeypatch.setenv("TRILITH_KERNELS", "torch")
    assert isinstance(PackedLinear(_weight(), activation_bits=8).product, TorchProduct)
