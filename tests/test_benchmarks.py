"""Every benchmark can be loaded: what it takes from the package is still there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As when it is run: what lies beside it can be imported.
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_the_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    ended = _run()
    assert ended.returncode == 1
    assert "no CUDA device" in ended.stderr


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_kernel_when_it_checks() -> None:
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    ended = _run("--check")
    assert ended.returncode == 0, ended.stderr
    for arm in ("bits2 ", "base3 ", "bits2 + quantize", "single launches"):
        assert arm in ended.stdout


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the GPU benchmark as a user does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(FOLDER / "gpu.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
