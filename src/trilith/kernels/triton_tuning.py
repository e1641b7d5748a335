"""Block sizes of the Triton kernels: tried on a GPU for each shape, one fixed set when interpreted.

Sums are exact, so that every choice gives the same bits.
"""

import triton

from trilith.kernels.triton_kernels import (
    INTERPRETED,
    gemm_kernel,
    gemv_kernel,
)

# With 16 words of a row for each warp, a thread reads 16 bytes of codes at once, and activations
# where it needs them: more, and Triton moves them between threads.
_WORDS_PER_WARP = 16


def _gemv_configs() -> list[triton.Config]:
    if INTERPRETED:
        return [triton.Config({"BLOCK_N": 64, "BLOCK_W": 32, "STAGES": 1, "UNROLL": 1})]
    return [
        triton.Config(
            {
                "BLOCK_N": block_n,
                "BLOCK_W": _WORDS_PER_WARP * num_warps,
                "STAGES": num_stages,
                "UNROLL": unroll,
            },
            num_warps=num_warps,
        )
        for block_n in (8, 16, 32)
        for num_warps in (2, 4, 8)
        # Reads ahead of their use: as plain loads, or through shared memory.
        for num_stages, unroll in ((1, 4), (4, 1))
    ]


def _gemm_configs() -> list[triton.Config]:
    if INTERPRETED:
        return [triton.Config({"BLOCK_N": 64, "BLOCK_B": 32})]
    return [
        triton.Config(
            {"BLOCK_N": block_n, "BLOCK_B": block_b}, num_warps=num_warps, num_stages=num_stages
        )
        for block_n, num_warps in ((64, 4), (128, 4), (128, 8))
        for block_b in (32, 64, 128)
        for num_stages in (3, 4)
    ]


# The interpreter has nothing to time, and no driver to ask for a clock.
_do_bench = (lambda call, quantiles=None: [1.0] * 3) if INTERPRETED else None

gemv = triton.autotune(
    configs=_gemv_configs(),
    key=["num_out", "group_words", "NUM_GROUPS", "PER_BYTE"],
    do_bench=_do_bench,
)(gemv_kernel)

gemm = triton.autotune(
    configs=_gemm_configs(),
    key=["num_out", "group_bytes", "NUM_GROUPS", "PER_BYTE", "SPLITS", "BLOCK_M"],
    reset_to_zero=["partial_ptr", "arrived_ptr"],
    do_bench=_do_bench,
)(gemm_kernel)
