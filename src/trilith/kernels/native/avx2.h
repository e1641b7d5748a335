/* Halves of tiles as unsigned bytes, and sums of pairs: for AVX2. */
#ifndef TRILITH_AVX2_H
#define TRILITH_AVX2_H

#include <immintrin.h>

#include "trilith.h"

#define AVX2_TARGET __attribute__((target("avx2")))
#define AVX2_INLINE static inline __attribute__((always_inline, target("avx2")))

/* Planes whose products 16 bits hold: a level is at most 2 (ternary) or 32, a value 127. */
static inline int64_t narrow_planes(int layout) { return layout == BITS4 ? 4 : 64; }

/* A third of 256 is 85.3: a digit is 1 from 86 and 2 from 171. The byte goes on to the next one. */
AVX2_INLINE __m256i next_digit(__m256i *bytes) {
    __m256i one = _mm256_set1_epi8(1);
    __m256i first = _mm256_min_epu8(_mm256_subs_epu8(*bytes, _mm256_set1_epi8(85)), one);
    __m256i second = _mm256_min_epu8(_mm256_subs_epu8(*bytes, _mm256_set1_epi8((char)170)), one);
    *bytes = _mm256_add_epi8(*bytes, _mm256_add_epi8(*bytes, *bytes));
    return _mm256_add_epi8(first, second);
}

/* The 8 outputs of one half of a plane, as unsigned bytes. Planes are asked for in order: `left`
 * keeps what is left of the digits. */
AVX2_INLINE __m256i half_plane(
    const uint8_t *tile, __m256i levels, int layout, int plane, int half, __m256i *left) {
    int bits = layout == BITS4 ? 4 : 2, per_byte = 8 / bits;
    tile += 32 * half + (layout == BITS4 ? 64 * (plane / per_byte) : 0);
    __m256i packed = _mm256_loadu_si256((const __m256i *)tile);
    if (layout == BASE3) {
        if (plane == 0) *left = packed;
        return next_digit(left);
    }
    __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
    __m256i codes = _mm256_and_si256(_mm256_srli_epi16(packed, plane % per_byte * bits), mask);
    return layout == BITS2 ? codes : _mm256_shuffle_epi8(levels, codes);
}

AVX2_INLINE __m256i levels_of(const product *p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->weight.levels));
}

AVX2_INLINE __m256i broadcast(const int8_t *values) {
    int32_t four;
    memcpy(&four, values, sizeof four);
    return _mm256_set1_epi32(four);
}

/* sum += codes times activations, by pairs. In assembler, since gcc 12 keeps one of eight sums in
 * memory, where each addition waits for the one before. */
AVX2_INLINE __m256i add_products(__m256i sum, __m256i codes, __m256i four) {
    __m256i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
            : "+x"(sum), "=x"(products)
            : "x"(codes), "x"(four));
    return sum;
}

/* Pairs of 16 bits are added to sums of 32. */
AVX2_INLINE __m256i widen_into(__m256i sum, __m256i narrow) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
}

/* The sum of a group, less what its offset adds, times the scales of 8 outputs. */
AVX2_INLINE __m256 scaled_sum(
    const product *p, __m256i sum, int64_t token, int64_t group, int64_t block, int half) {
    const float *factor = p->weight.factor + (group * p->num_blocks + block) * BLOCK + 8 * half;
    __m256i shift = _mm256_set1_epi32(p->sums[token * p->weight.num_groups + group]);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sum, shift)), _mm256_loadu_ps(factor));
}

/* Write the 16 outputs of a block, times the token's scale; the last block may have fewer. */
AVX2_INLINE void write_outputs(
    const product *p, int64_t block, int64_t token, __m256 low, __m256 high) {
    __m256 scale = _mm256_set1_ps(p->scale[token]);
    int64_t width = min64(BLOCK, p->weight.num_out - block * BLOCK);
    float *out = p->out + token * p->weight.num_out + block * BLOCK, row[BLOCK];
    _mm256_storeu_ps(row, _mm256_mul_ps(low, scale));
    _mm256_storeu_ps(row + 8, _mm256_mul_ps(high, scale));
    memcpy(out, row, (size_t)width * sizeof *out);
}

#endif
