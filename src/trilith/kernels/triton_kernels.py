"""Triton kernels: quantize activations, GEMV for single tokens, GEMM on int8 tensor cores.

`gpu_layout` says how weights lie in memory; sums are whole numbers in int32 and exact, so that
neither the order of the programs nor the block sizes change a bit. Products of floats are not
contracted: launch with enable_fp_fusion=False.

What PTX does in one instruction has a second, plain form for Triton's interpreter, which tests the
rest on CPUs: TRITON_INTERPRET=1 must be set before this module is imported.

Axes: M tokens, O outputs, G groups; of blocks M tokens, N outputs, W words of 4 bytes of codes,
B bytes of codes.
"""

# Triton reads these definitions by itself: types of their arguments are no types of Python.
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
# Adding and taking off 1.5 * 2^23 rounds to whole numbers, halves to even.
_ROUNDER: tl.constexpr = tl.constexpr(12582912.0)


@triton.jit
def quantize_kernel(
    x_ptr,  # floats [M, G * group_in]
    values_ptr,  # int8 [M, G * padded_in]
    sums_ptr,  # int32 [M, G]
    scale_ptr,  # float32 [M]
    group_in,
    padded_in,
    NUM_GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Quantize one token a program as `quantize_activation` does; add up each group."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    num_in = NUM_GROUPS * group_in
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_in, BLOCK):
        at = start + lane
        x = tl.load(x_ptr + token * num_in + at, mask=at < num_in, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    absmax = tl.maximum(tl.max(largest, axis=0), 1e-5)
    int8_max = tl.full([], 127.0, tl.float32)
    # As torch divides a number by a tensor: its reciprocal is rounded first.
    inv_scale = tl.div_rn(tl.full([], 1.0, tl.float32), absmax) * int8_max
    for group in range(NUM_GROUPS):
        block_sums = tl.zeros([BLOCK], tl.int32)
        for start in range(0, padded_in, BLOCK):
            at = start + lane
            here = x_ptr + token * num_in + group * group_in + at
            x = tl.load(here, mask=at < group_in, other=0.0).to(tl.float32)
            whole = (x * inv_scale + _ROUNDER) - _ROUNDER
            values = whole.to(tl.int32)
            block_sums += values
            there = values_ptr + (token * NUM_GROUPS + group) * padded_in + at
            tl.store(there, values.to(tl.int8), mask=at < padded_in)
        tl.store(sums_ptr + token * NUM_GROUPS + group, tl.sum(block_sums, axis=0))
    tl.store(scale_ptr + token, tl.div_rn(absmax, int8_max))


@triton.jit
def gemv_kernel(
    words_ptr,  # int32 [O, G * group_words]: codes
    x_ptr,  # int32 [M, G * PER_BYTE * group_words]: int8 activations
    sums_ptr,  # int32 [M, G]
    token_scale_ptr,  # float32 [M]
    factor_ptr,  # float32 [O or 1, G]
    out_ptr,  # floats [M, O]
    num_out,
    group_words,
    factor_stride,  # G, or 0 where all rows share a factor
    table_low,
    table_high,
    OFFSET: tl.constexpr,
    PER_BYTE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STAGES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Multiply one token with BLOCK_N rows, 4 weights an instruction."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1)
    is_row = rows < num_out
    row_words = words_ptr + rows.to(tl.int64)[:, None] * (NUM_GROUPS * group_words)
    token_words = x_ptr + token * (NUM_GROUPS * PER_BYTE * group_words)
    total = tl.zeros([BLOCK_N], tl.float32)
    for group in range(NUM_GROUPS):
        low = tl.zeros([BLOCK_N, BLOCK_W], tl.int32)
        # Sums of digits that were left in bits 2 and 3: 4 times too large.
        high = tl.zeros([BLOCK_N, BLOCK_W], tl.int32)
        for start in tl.range(
            0, group_words, BLOCK_W, num_stages=STAGES, loop_unroll_factor=UNROLL
        ):
            at = start + tl.arange(0, BLOCK_W)
            is_word = at < group_words
            here = row_words + group * group_words + at[None, :]
            words = tl.load(here, mask=is_row[:, None] & is_word[None, :], other=0)
            words = words.to(tl.uint32, bitcast=True)
            x_ptrs = token_words + group * PER_BYTE * group_words + at
            low, high = _add_words(
                words, x_ptrs, is_word, low, high, group_words, table_low, table_high, PER_BYTE
            )
        sums = tl.sum(low + (high >> 2), axis=1)
        x_sum = tl.load(sums_ptr + token * NUM_GROUPS + group)
        factor = tl.load(factor_ptr + rows * factor_stride + group, mask=is_row, other=0.0)
        total += (sums - OFFSET * x_sum).to(tl.float32) * factor
    y = (total * tl.load(token_scale_ptr + token)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token.to(tl.int64) * num_out + rows, y, mask=is_row)


@triton.jit
def _add_words(
    words, x_ptrs, is_word, low, high, group_words, table_low, table_high, PER_BYTE: tl.constexpr
):
    """Add the products of words of codes to two sums, the second of which is 4 times too large."""
    even, odd = words & 0x00FF00FF, (words >> 8) & 0x00FF00FF
    for place in tl.static_range(PER_BYTE):
        x = tl.load(x_ptrs + place * group_words, mask=is_word, other=0)[None, :]
        if PER_BYTE == 5:
            even, odd = 3 * even, 3 * odd
            low = _dot4(((even >> 8) & 0x00030003) | (odd & 0x03000300), x, low)
            even, odd = even & 0x00FF00FF, odd & 0x00FF00FF
        elif PER_BYTE == 2:
            codes = (words >> (4 * place)) & 0x07070707
            low = _dot4(_look_up4(codes, table_low, table_high), x, low)
        elif place % 2 == 0:
            low = _dot4((words >> (2 * place)) & 0x03030303, x, low)
        else:
            high = _dot4((words >> (2 * place - 2)) & 0x0C0C0C0C, x, high)
    return low, high


@triton.jit
def gemm_kernel(
    codes_ptr,  # uint8 [O, G * group_bytes]
    x_ptr,  # int8 [M, G * PER_BYTE * group_bytes]
    sums_ptr,  # int32 [M, G]
    token_scale_ptr,  # float32 [M]
    factor_ptr,  # float32 [O or 1, G]
    out_ptr,  # floats [M, O]
    partial_ptr,  # int32 zeros [M, O], for SPLITS > 1
    arrived_ptr,  # int32 zeros, one a block of outputs, for SPLITS > 1
    num_tokens,
    num_out,
    group_bytes,
    factor_stride,  # G, or 0 where all rows share a factor
    table_low,
    table_high,
    OFFSET: tl.constexpr,
    PER_BYTE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Multiply BLOCK_M tokens with BLOCK_N rows on int8 tensor cores.

    Weights are the left operand, which tensor cores read from registers: codes are unpacked there
    and pass through no other memory. With SPLITS > 1 (one group alone) as many programs share the
    inputs; the last to arrive scales what all have added up.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row, is_token = rows < num_out, tokens < num_tokens
    row_codes = codes_ptr + rows.to(tl.int64)[:, None] * (NUM_GROUPS * group_bytes)
    token_values = x_ptr + tokens.to(tl.int64)[None, :] * (NUM_GROUPS * PER_BYTE * group_bytes)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for group in range(NUM_GROUPS):
        acc = _group_products(
            row_codes + group * group_bytes,
            token_values + group * PER_BYTE * group_bytes,
            *(is_row, is_token, group_bytes, table_low, table_high),
            *(PER_BYTE, SPLITS, BLOCK_M, BLOCK_N, BLOCK_B),
        )
        if SPLITS == 1:
            group_sums = sums_ptr + tokens * NUM_GROUPS + group
            group_factor = factor_ptr + rows * factor_stride + group
            total += _scaled(acc, group_sums, group_factor, is_row, is_token, OFFSET)
    is_out = is_row[:, None] & is_token[None, :]
    out_at = tokens.to(tl.int64)[None, :] * num_out + rows[:, None]
    is_last = True
    if SPLITS > 1:
        arrived_ptr += tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        acc, is_last = _share(acc, partial_ptr + out_at, is_out, arrived_ptr, SPLITS)
        row_factor = factor_ptr + rows * factor_stride
        total = _scaled(acc, sums_ptr + tokens, row_factor, is_row, is_token, OFFSET)
    token_scale = tl.load(token_scale_ptr + tokens, mask=is_token, other=0.0)
    y = (total * token_scale[None, :]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at, y, mask=is_out & is_last)


@triton.jit
def _group_products(
    row_codes,
    token_values,
    is_row,
    is_token,
    group_bytes,
    table_low,
    table_high,
    PER_BYTE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Return this program's share of a group's products: int32 [BLOCK_N, BLOCK_M]."""
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for start in range(tl.program_id(2) * BLOCK_B, group_bytes, BLOCK_B * SPLITS):
        at = start + tl.arange(0, BLOCK_B)
        is_byte = at < group_bytes
        codes = tl.load(row_codes + at[None, :], mask=is_row[:, None] & is_byte[None, :], other=0)
        x_ptrs, is_x = token_values + at[:, None], is_byte[:, None] & is_token[None, :]
        for place in tl.static_range(PER_BYTE):
            x = tl.load(x_ptrs + place * group_bytes, mask=is_x, other=0)
            digits, codes = _next_digits(codes, table_low, table_high, PER_BYTE)
            acc = tl.dot(digits, x, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def _scaled(acc, sums_ptrs, factor_ptrs, is_row, is_token, OFFSET: tl.constexpr):
    """Take the offset of the codes from sums of products; scale them by row."""
    x_sums = tl.load(sums_ptrs, mask=is_token, other=0)
    factor = tl.load(factor_ptrs, mask=is_row, other=0.0)
    return (acc - OFFSET * x_sums[None, :]).to(tl.float32) * factor[:, None]


@triton.jit
def _share(acc, partial_ptrs, is_out, arrived_ptr, SPLITS: tl.constexpr):
    """Add up sums over programs; return the whole and True in the program that came last."""
    tl.atomic_add(partial_ptrs, acc, mask=is_out, sem="relaxed")
    # All threads have added before one of them says so.
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived_ptr, 1) == SPLITS - 1
    tl.debug_barrier()
    whole = tl.load(partial_ptrs, mask=is_out & is_last, other=0, volatile=True)
    return whole, is_last


@triton.jit
def _dot4(digits, values, acc):
    """Add up products of 4 bytes, unsigned and signed, of each pair of words."""
    if INTERPRETED:
        for byte in tl.static_range(4):
            digit = ((digits >> (8 * byte)) & 0xFF).to(tl.int32)
            acc = acc + digit * ((values << (24 - 8 * byte)) >> 24)
    else:
        acc = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [digits, values, acc],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return acc


@triton.jit
def _look_up4(codes, table_low, table_high):
    """Replace 4 bytes 0..7 of each word by the bytes of the table."""
    if INTERPRETED:
        found = codes & 0
        for byte in tl.static_range(4):
            entry = _entry((codes >> (8 * byte)) & 7, table_low, table_high)
            found = found | (entry << (8 * byte))
    else:
        # Four nibbles of the low half name the bytes that prmt picks.
        found = tl.inline_asm_elementwise(
            """{
            .reg .b32 t;
            shr.u32 t, $1, 4;
            or.b32 t, t, $1;
            prmt.b32 t, t, 0, 0x4420;
            prmt.b32 $0, $2, $3, t;
            }""",
            "=r,r,r,r",
            [codes, table_low, table_high],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    return found


@triton.jit
def _entry(code, table_low, table_high):
    """Return the byte of the table that each element names."""
    table = tl.where(code < 4, table_low, table_high).to(tl.uint32)
    return (table >> (8 * (code & 3))) & 0xFF


@triton.jit
def _next_digits(codes, table_low, table_high, PER_BYTE: tl.constexpr):
    """Return the next code of each byte as int8, and the bytes that go on with the one after."""
    if PER_BYTE == 5:
        digits, codes = _next_digit3(codes)
    elif PER_BYTE == 2:
        digits, codes = _next_level(codes, table_low, table_high)
    else:
        digits, codes = _next_bits2(codes)
    return digits, codes


@triton.jit
def _next_bits2(codes):
    """Return the lowest 2 bits of each byte as int8, and the bytes that go on with the next."""
    if INTERPRETED:
        digits, rest = (codes & 3).to(tl.int8), codes >> 2
    else:
        # What crosses from byte to byte never gets down to the lowest 2 bits.
        digits, rest = tl.inline_asm_elementwise(
            "and.b32 $0, $2, 0x03030303; shr.u32 $1, $2, 2;",
            "=&r,=r,r",
            [codes],
            dtype=(tl.int8, tl.uint8),
            is_pure=True,
            pack=4,
        )
    return digits, rest


@triton.jit
def _next_digit3(codes):
    """Return the first digit of base 3 of each byte as int8, and the bytes that hold the rest."""
    if INTERPRETED:
        tripled = 3 * codes.to(tl.int32)
        digits, rest = (tripled >> 8).to(tl.int8), (tripled & 0xFF).to(tl.uint8)
    else:
        digits, rest = tl.inline_asm_elementwise(
            """{
            .reg .b32 even, odd;
            and.b32 even, $2, 0x00ff00ff;
            shr.u32 odd, $2, 8;
            and.b32 odd, odd, 0x00ff00ff;
            mul.lo.u32 even, even, 3;
            mul.lo.u32 odd, odd, 3;
            prmt.b32 $0, even, odd, 0x7351;
            prmt.b32 $1, even, odd, 0x6240;
            }""",
            "=&r,=r,r",
            [codes],
            dtype=(tl.int8, tl.uint8),
            is_pure=True,
            pack=4,
        )
    return digits, rest


@triton.jit
def _next_level(codes, table_low, table_high):
    """Return the bytes of the table that the lowest 3 bits name, and the bytes that go on."""
    if INTERPRETED:
        found = _entry((codes & 7).to(tl.uint32), table_low, table_high)
        digits, rest = found.to(tl.int8), codes >> 4
    else:
        # One word of codes; the words of the table come once for each of its 4 bytes.
        digits, rest = tl.inline_asm_elementwise(
            """{
            .reg .b32 t, u;
            and.b32 t, $2, 0x07070707;
            shr.u32 u, t, 4;
            or.b32 t, t, u;
            prmt.b32 t, t, 0, 0x4420;
            prmt.b32 $0, $3, $7, t;
            shr.u32 $1, $2, 4;
            }""",
            "=&r,=r,r,r,r,r,r,r,r,r,r",
            [codes, table_low, table_high],
            dtype=(tl.int8, tl.uint8),
            is_pure=True,
            pack=4,
        )
    return digits, rest
