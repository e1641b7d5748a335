"""What pyproject.toml cannot say: the build compiles the native kernels where it finds a compiler.

Without one, or where it fails, the installation is whole all the same: kernels are compiled on
first use, or the portable torch path runs. An editable one leaves them to the first use.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

_BUILDER = Path(__file__).parent / "src/trilith/kernels/native_build.py"


class BuildKernels(build_py):
    """Copies the package, and puts the library beside its sources."""

    library: Path | None = None

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "trilith/kernels/native"
        for old in folder.glob("kernels-*.so"):
            old.unlink()
        try:
            self.library = _builder().compile_into(folder)
        except (OSError, RuntimeError) as problem:
            self.warn(f"the native kernels are left to their first use: {problem}")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        built = [] if self.library is None else [str(self.library)]
        return [*super().get_outputs(include_bytecode), *built]


class PlatformWheel(bdist_wheel):
    """A wheel for this machine and any Python: the library knows nothing of Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def _builder() -> ModuleType:
    """The module alone: its package would import torch, which a build does not have."""
    spec = importlib.util.spec_from_file_location("native_build", _BUILDER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup(cmdclass={"build_py": BuildKernels, "bdist_wheel": PlatformWheel})
