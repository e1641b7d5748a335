"""Which kernels run: the environment variable TRILITH_KERNELS, or the best that the device has.

    auto     the best native kernels, else torch (the default)
    torch    the portable torch path
    triton   Triton kernels: on a CUDA device, what auto takes there; on a CPU in Triton's
             interpreter alone (TRITON_INTERPRET=1), for tests
    scalar, avx2, vnni, amx, neon    these native kernels, or an error

`amx` multiplies prompts with AMX and single tokens with VNNI. All give the same bits.
"""

import importlib.util
import logging
import os
from functools import cache
from typing import NamedTuple

import torch

from trilith.kernels.native_build import load_native

log = logging.getLogger(__name__)

VARIABLE = "TRILITH_KERNELS"
# Numbers of the C enum; plain C in scalar is for comparison and no choice of auto.
ISA_NUMBERS = {"scalar": 0, "avx2": 1, "vnni": 2, "amx": 3, "neon": 4}
_BEST_FIRST = ("amx", "vnni", "avx2", "neon")


class Isa(NamedTuple):
    """An instruction set that native kernels use."""

    name: str
    number: int


def chosen_isa() -> Isa | None:
    """Return the instruction set of the native kernels to run; None for the torch path.

    Raises:
        ValueError: TRILITH_KERNELS is unknown, or names what this machine cannot run.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice in ("torch", "triton"):
        return None
    if choice == "auto":
        return _best_isa()
    if choice not in ISA_NUMBERS:
        raise ValueError(
            f"{VARIABLE}={choice} is not known; choose auto, torch, triton or "
            f"{', '.join(ISA_NUMBERS)}"
        )
    if problem := load_native().problem:
        raise ValueError(f"{VARIABLE}={choice} cannot run: {problem}; use auto or torch")
    if choice not in available_isas():
        raise ValueError(
            f"{VARIABLE}={choice} cannot run on this processor; use auto, torch or "
            f"{', '.join(available_isas())}"
        )
    return Isa(choice, ISA_NUMBERS[choice])


def runs_triton(device: torch.device) -> bool:
    """True if Triton kernels multiply packed weights on this device.

    Raises:
        ValueError: TRILITH_KERNELS names what cannot run there.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice == "triton":
        if not _has_triton():
            raise ValueError(
                f"{VARIABLE}=triton cannot run: triton is not installed; install the extra gpu, "
                "or use auto"
            )
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"{VARIABLE}=triton cannot run on {device}: load the model on a CUDA device, or "
                "set TRITON_INTERPRET=1 for Triton's slow interpreter"
            )
        return True
    if device.type != "cuda" or choice == "torch":
        return False
    if choice != "auto":
        raise ValueError(
            f"{VARIABLE}={choice} names kernels of a CPU, and the model is to run on {device}; "
            "use auto, triton or torch"
        )
    if not _has_triton():
        log.warning("the torch path runs, Triton kernels do not: install the extra gpu")
    return _has_triton()


def available_isas() -> list[str]:
    """Instruction sets whose native kernels this machine can run; none without a compiler."""
    library = load_native().library
    if library is None:
        return []
    return [name for name, number in ISA_NUMBERS.items() if library.trilith_supports(number)]


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _best_isa() -> Isa | None:
    available = available_isas()
    found = next((name for name in _BEST_FIRST if name in available), None)
    if found is None:
        problem = load_native().problem or "they have no code for this processor"
        log.warning("the portable torch path runs, native kernels do not: %s", problem)
        return None
    log.info("native kernels: %s", found)
    return Isa(found, ISA_NUMBERS[found])
