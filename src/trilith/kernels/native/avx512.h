/* Tiles to planes: vectors of 16 outputs x 4 inputs, codes as unsigned bytes. For AVX-512. */
#ifndef TRILITH_AVX512_H
#define TRILITH_AVX512_H

#include <immintrin.h>

#include "trilith.h"

#define AVX512_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
#define AVX512_INLINE static inline __attribute__((always_inline, target(AVX512_FEATURES)))

AVX512_INLINE __m512i broadcast(const int8_t *values) {
    int32_t four;
    memcpy(&four, values, sizeof four);
    return _mm512_set1_epi32(four);
}

/* In assembler, since gcc 12 copies the sums of the intrinsic to other registers and to memory. */
AVX512_INLINE __m512i dot(__m512i sum, __m512i codes, __m512i four) {
#ifdef EMULATED /* by a test, on any processor */
    sum = _mm512_dpbusd_epi32(sum, codes, four);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(four));
#endif
    return sum;
}

AVX512_INLINE __m512i times3(__m512i bytes) {
    return _mm512_add_epi8(bytes, _mm512_add_epi8(bytes, bytes));
}

/* A third of 256 is 85.3: a digit is 1 from 86 and 2 from 171. The byte goes on to the next one. */
AVX512_INLINE __m512i next_digit(__m512i *bytes) {
    __m512i one = _mm512_set1_epi8(1);
    __m512i first = _mm512_min_epu8(_mm512_subs_epu8(*bytes, _mm512_set1_epi8(85)), one);
    __m512i second = _mm512_min_epu8(_mm512_subs_epu8(*bytes, _mm512_set1_epi8((char)170)), one);
    *bytes = times3(*bytes);
    return _mm512_add_epi8(first, second);
}

AVX512_INLINE void unpack_tile(
    const uint8_t *tile, __m512i levels, int layout, uint8_t *rows) {
    if (layout == BASE3) {
        __m512i bytes = _mm512_loadu_si512(tile);
        for (int plane = 0; plane < planes_of(BASE3); plane++)
            _mm512_storeu_si512(rows + plane * STEP, next_digit(&bytes));
        return;
    }
    int bits = layout == BITS4 ? 4 : 2, per_byte = 8 / bits;
    __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    for (int plane = 0; plane < planes_of(layout); plane++) {
        __m512i packed = _mm512_loadu_si512(tile + STEP * (plane / per_byte));
        __m512i codes = _mm512_srli_epi16(packed, plane % per_byte * bits);
        codes = _mm512_and_si512(codes, mask);
        if (layout == BITS4) codes = _mm512_shuffle_epi8(levels, codes);
        _mm512_storeu_si512(rows + plane * STEP, codes);
    }
}

AVX512_INLINE __m512i levels_of(const product *p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p->weight.levels));
}

AVX512_INLINE void unpack_layout(const product *p, int layout, int64_t block, uint8_t *rows) {
    const __m512i levels = levels_of(p);
    for (int64_t group = 0; group < p->weight.num_groups; group++) {
        const uint8_t *tile = tiles_of(p, block, group);
        uint8_t *row = rows + group * p->group_steps * STEP * BLOCK;
        for (int64_t i = 0; i < p->group_tiles; i++, row += planes_of(layout) * STEP)
            unpack_tile(tile + i * tile_bytes(layout), levels, layout, row);
    }
}

/* Unpack all groups of a block into rows: [num_groups, group_steps * STEP / QUAD, STEP]. Rows behind
 * a group's tiles are not written, and meet activations of zero. */
AVX512_INLINE void unpack(const product *p, int64_t block, uint8_t *rows) {
    if (p->weight.layout == BITS2)
        unpack_layout(p, BITS2, block, rows);
    else if (p->weight.layout == BASE3)
        unpack_layout(p, BASE3, block, rows);
    else
        unpack_layout(p, BITS4, block, rows);
}

#endif
