"""The Triton path: weights as codes in the memory of a GPU, float activations in.

Equal to the torch path bit for bit; autotuned on a GPU, where one configuration runs in Triton's
interpreter (TRITON_INTERPRET=1 before the first use), which tests it on CPUs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, nn

from trilith.kernels.gpu_layout import (
    DIGITS_PER_BYTE,
    GpuLayout,
    fits_gpu,
    group_bytes,
    lay_out,
    level_table,
)
from trilith.kernels.triton_kernels import INTERPRETED, quantize_kernel
from trilith.kernels.triton_tuning import gemm, gemv
from trilith.kernels.weight import PackedWeight

# Up to here each token reads the weights anew, mostly from L2; beyond, tensor cores read them once.
GEMV_TOKENS = 2
# Up to here the outputs alone may be too few blocks for a GPU: programs then share the inputs.
_SPLIT_TOKENS = 64
_LEAST_BLOCK_M, _LARGEST_BLOCK_M = 16, 128
_MULTIPROCESSORS = 132
# Bytes of a row that are worth a program of their own.
_LEAST_SHARE = 64
_QUANTIZE_BLOCK = 1024


class QuantizedTokens(NamedTuple):
    """Activations as the kernels take them."""

    values: Tensor  # int8 [M, G, P * T]: each group followed by zeros
    sums: Tensor  # int32 [M, G]: of the values of a group
    scale: Tensor  # float32 [M]


class TritonProduct(nn.Module):
    """Float activations [..., I] -> [..., O], equal to quantizing them and `packed_product`."""

    codes: Tensor
    factor: Tensor

    def __init__(self, weight: PackedWeight, *, layout: GpuLayout) -> None:
        super().__init__()
        assert fits_gpu(weight), weight.shape
        self.layout = layout
        self.num_out, self.num_in = weight.shape
        self.num_groups = weight.scale.shape[1]
        self.group_bytes = group_bytes(self.num_in // self.num_groups, layout)
        self.table = level_table(weight.grid)
        self.offset = weight.grid.numerators[-1]
        for name, tensor in lay_out(weight, layout)._asdict().items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x [..., I] to int8 per token and multiply: [..., O] of the same dtype."""
        assert x.shape[-1] == self.num_in, x.shape
        if not x.device == self.codes.device:
            raise ValueError(
                f"activations are on {x.device} and weights on {self.codes.device}; load the model "
                "with the device that it is to run on"
            )
        tokens = x.reshape(-1, self.num_in)
        out = self.multiply(self.quantize(tokens), dtype=x.dtype)
        return out.view(*x.shape[:-1], self.num_out)

    def quantize(self, x: Tensor) -> QuantizedTokens:
        """Quantize floats [M, I] to int8 per token, laid out as the codes are."""
        num_tokens, padded_in = len(x), DIGITS_PER_BYTE[self.layout] * self.group_bytes
        shape = num_tokens, self.num_groups
        values = x.new_empty((*shape, padded_in), dtype=torch.int8)
        sums, scale = x.new_empty(shape, dtype=torch.int32), x.new_empty(num_tokens).float()
        if num_tokens:
            group_in = self.num_in // self.num_groups
            with torch.cuda.device_of(x):
                quantize_kernel[(num_tokens,)](
                    x.contiguous(),
                    values,
                    sums,
                    scale,
                    group_in,
                    padded_in,
                    NUM_GROUPS=self.num_groups,
                    BLOCK=_QUANTIZE_BLOCK,
                    enable_fp_fusion=False,
                )
        return QuantizedTokens(values, sums, scale)

    def multiply(self, tokens: QuantizedTokens, *, dtype: torch.dtype) -> Tensor:
        """Multiply quantized tokens: [M, O] in `dtype`, scales of weights and tokens included."""
        num_tokens = len(tokens.scale)
        # The interpreter cuts bfloat16 off where a GPU rounds.
        written = torch.float32 if INTERPRETED else dtype
        out = tokens.scale.new_empty((num_tokens, self.num_out), dtype=written)
        if num_tokens:
            launch = self._launch_gemv if num_tokens <= GEMV_TOKENS else self._launch_gemm
            with torch.cuda.device_of(out):
                launch(tokens, out)
        return out.to(dtype)

    def _launch_gemv(self, tokens: QuantizedTokens, out: Tensor) -> None:
        gemv[_blocks_of(out)](
            self.codes.view(torch.int32),
            tokens.values.view(torch.int32),
            tokens.sums,
            tokens.scale,
            self.factor,
            out,
            self.num_out,
            self.group_bytes // 4,
            **self._constants(),
        )

    def _launch_gemm(self, tokens: QuantizedTokens, out: Tensor) -> None:
        block_m = min(max(triton.next_power_of_2(len(out)), _LEAST_BLOCK_M), _LARGEST_BLOCK_M)
        splits = self._num_splits(out)
        # Partial sums, and after them how many programs of each block of rows have arrived.
        num_partial = out.numel() if splits > 1 else 0
        num_counts = self.num_out if splits > 1 else 1
        shared = torch.zeros(num_partial + num_counts, dtype=torch.int32, device=out.device)
        gemm[_blocks_of(out)](
            self.codes,
            tokens.values,
            tokens.sums,
            tokens.scale,
            self.factor,
            out,
            shared,
            shared[num_partial:],
            *out.shape,
            self.group_bytes,
            **self._constants(),
            SPLITS=splits,
            BLOCK_M=block_m,
        )

    def _constants(self) -> dict[str, Any]:
        low, high = self.table
        return {
            "factor_stride": 0 if self.factor.shape[0] == 1 else self.num_groups,
            "table_low": low,
            "table_high": high,
            "OFFSET": self.offset,
            "PER_BYTE": DIGITS_PER_BYTE[self.layout],
            "NUM_GROUPS": self.num_groups,
            "enable_fp_fusion": False,
        }

    def _num_splits(self, out: Tensor) -> int:
        """Programs that share a block's inputs, so that all multiprocessors have work."""
        num_tokens, num_out = out.shape
        if self.num_groups > 1 or num_tokens > _SPLIT_TOKENS:
            return 1
        wanted = 2 * _MULTIPROCESSORS // -(-num_out // 64)
        most = self.group_bytes // _LEAST_SHARE
        return max(1, min(wanted, most, 16))


def _blocks_of(out: Tensor) -> Callable[[dict[str, int]], tuple[int, int, int]]:
    """The grid of programs for outputs [M, O], once the block sizes are known."""
    num_tokens, num_out = out.shape

    def blocks(sizes: dict[str, int]) -> tuple[int, int, int]:
        num_rows = triton.cdiv(num_out, sizes["BLOCK_N"])
        return num_rows, triton.cdiv(num_tokens, sizes.get("BLOCK_M", 1)), sizes.get("SPLITS", 1)

    return blocks
