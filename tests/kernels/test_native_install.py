"""Kernels that were built at install: found by their key, passed over where it does not fit."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from trilith.kernels import available_isas, native_build

ROOT = Path(__file__).parents[2]
FAKE_COMPILER = """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo library > "$2"; shift; done
"""
needs_compiler = pytest.mark.skipif(not available_isas(), reason="no C compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a compiler, whose cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[ModuleType]:
    """The module as an installation has it: a copy with the library beside the sources."""
    folder = tmp_path / "installed"
    shutil.copytree(Path(native_build.__file__).parent / "native", folder / "native")
    shutil.copy(native_build.__file__, folder)
    module = _module_at(folder / "native_build.py")
    library = shutil.copy(native_build.library_path(), folder / "native" / module.packaged_name())
    yield module
    Path(library).unlink(missing_ok=True)


@needs_compiler
def test_a_library_in_the_package_runs_without_a_compiler(
    installed: ModuleType, cache: Path
) -> None:
    native = installed.load_native()
    assert native.problem == "" and native.library.trilith_supports(0)
    assert installed.library_path().name == installed.packaged_name()
    assert not cache.exists()


@needs_compiler
@pytest.mark.parametrize("what", ["sources", "flags", "machine"])
def test_a_library_with_another_key_is_passed_over(
    what: str, installed: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "sources":
        header = Path(installed.__file__ or "").parent / "native/trilith.h"
        header.write_text(header.read_text() + "/* another version */")
    elif what == "flags":
        monkeypatch.setattr(installed, "FLAGS", (*installed.FLAGS, "-DANOTHER"))
    else:
        monkeypatch.setattr(platform, "machine", lambda: "another")
    assert "no C compiler" in installed.load_native().problem


@needs_compiler
def test_a_compiler_that_is_named_is_used(
    installed: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in installed.load_native().problem


@needs_compiler
def test_a_damaged_library_in_the_package_stays_and_is_no_reason_to_stop(
    installed: ModuleType, cache: Path
) -> None:
    library = installed.library_path()
    library.write_text("damaged")
    assert "no C compiler" in installed.load_native().problem
    assert library.read_text() == "damaged"


@pytest.mark.skipif(os.name != "posix", reason="the compiler is a shell script")
@pytest.mark.parametrize("compiler", ["working", "missing"])
def test_a_build_holds_the_library_where_there_is_a_compiler(compiler: str, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    fake = tmp_path / "working"
    fake.write_text(FAKE_COMPILER)
    fake.chmod(0o755)
    command = [sys.executable, ROOT / "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    command += ["build_py", "--build-lib", tmp_path / "build"]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | {"CC": str(tmp_path / compiler)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "build/trilith/kernels/native"
    assert (folder / "trilith.h").is_file()
    found = [path.name for path in folder.glob("*.so")]
    if compiler == "working":
        assert found == [native_build.packaged_name()]
    else:
        assert not found and "left to their first use" in done.stdout + done.stderr


def _module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("installed_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
