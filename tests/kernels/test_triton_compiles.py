"""What the interpreter does not see: the kernels compile for Hopper, to the instructions meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the extra gpu is not installed")

# In a process of its own: here the kernels are interpreted.
_PROGRAM = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trilith.kernels import triton_kernels

POINTERS = {"x_ptr": "*i8", "values_ptr": "*i8", "codes_ptr": "*u8", "words_ptr": "*i32",
            "sums_ptr": "*i32", "partial_ptr": "*i32", "arrived_ptr": "*i32", "out_ptr": "*bf16"}
DIVISIBLE = ("group_bytes", "group_words", "num_out")

def compile(name, x, **constants):
    kernel = getattr(triton_kernels, name)
    types = dict(POINTERS, x_ptr=x)
    signature, attributes = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        default = "*fp32" if argument.endswith("_ptr") else "i32"
        signature[argument] = types.get(argument, default)
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr") or argument in DIVISIBLE:
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

ptx = compile("quantize_kernel", "*bf16", NUM_GROUPS=1, BLOCK=1024)
assert "div.rn.f32" in ptx and "fma" not in ptx
for per_byte in (4, 5, 2):
    shared = {"OFFSET": 1, "PER_BYTE": per_byte, "NUM_GROUPS": 1}
    ptx = compile("gemv_kernel", "*i32", BLOCK_N=16, BLOCK_W=64, STAGES=1, UNROLL=1, **shared)
    assert "dp4a.u32.s32" in ptx and "ld.global.v4" in ptx and "fma.rn.f32" not in ptx
    for splits, block_m in ((4, 16), (1, 64)):
        blocks = {"SPLITS": splits, "BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_B": 32}
        ptx = compile("gemm_kernel", "*i8", **blocks, **shared)
        assert f"wgmma.mma_async.sync.aligned.m64n{block_m}k32.s32.s8.s8" in ptx
        assert "fma.rn.f32" not in ptx
print("compiled")
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    ended = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.stdout == "compiled\n", ended.stderr
