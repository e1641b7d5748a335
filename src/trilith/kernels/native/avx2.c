/* AVX2: maddubs into 16-bit sums, widened to 32 bits before they can overflow. */
#include "trilith.h"

#ifdef __x86_64__
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline, target("avx2")))

enum { MAX_TOKENS = 4, PREFETCH_BYTES = 1024 };

/* A third of 256 is 85.3: a digit is 1 from 86 and 2 from 171. The byte goes on to the next one. */
INLINE __m256i next_digit(__m256i *bytes) {
    __m256i one = _mm256_set1_epi8(1);
    __m256i first = _mm256_min_epu8(_mm256_subs_epu8(*bytes, _mm256_set1_epi8(85)), one);
    __m256i second = _mm256_min_epu8(_mm256_subs_epu8(*bytes, _mm256_set1_epi8((char)170)), one);
    *bytes = _mm256_add_epi8(*bytes, _mm256_add_epi8(*bytes, *bytes));
    return _mm256_add_epi8(first, second);
}

/* The 8 outputs of one half of a plane, as unsigned bytes. Planes are asked for in order: `left`
 * keeps what is left of the digits. */
INLINE __m256i half_plane(
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

INLINE __m256i broadcast(const int8_t *values) {
    int32_t four;
    memcpy(&four, values, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE void add_tile(
    const product *p, int layout, const uint8_t *tile, const int8_t *values, int64_t i,
    int tokens, __m256i (*narrow)[2]) {
    const __m128i *table = (const __m128i *)p->weight.levels;
    __m256i levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
    __m256i left[2] = {levels, levels};
    for (int plane = 0; plane < planes_of(layout); plane++) {
        __m256i low = half_plane(tile, levels, layout, plane, 0, left);
        __m256i high = half_plane(tile, levels, layout, plane, 1, left + 1);
        const int8_t *quad = quad_of(p, values, i * planes_of(layout) + plane);
        for (int t = 0; t < tokens; t++) {
            __m256i x = broadcast(quad + t * STEP);
            narrow[t][0] = _mm256_add_epi16(narrow[t][0], _mm256_maddubs_epi16(low, x));
            narrow[t][1] = _mm256_add_epi16(narrow[t][1], _mm256_maddubs_epi16(high, x));
        }
    }
}

/* Add the sums of one group to the totals of `tokens` tokens x 16 outputs. */
INLINE void add_group(
    const product *p, int layout, int tokens, int64_t block, int64_t group, int64_t token,
    __m256 (*total)[2]) {
    /* A level is at most 2 (ternary) or 32, a value 127, and 16 bits end at 32767. */
    int64_t run = layout == BITS4 ? 1 : 64 / planes_of(layout);
    const uint8_t *tile = tiles_of(p, block, group);
    const int8_t *values = values_of(p, token, group);
    __m256i wide[MAX_TOKENS][2];
    for (int t = 0; t < tokens; t++) wide[t][0] = wide[t][1] = _mm256_setzero_si256();
    for (int64_t start = 0; start < p->group_tiles; start += run) {
        __m256i narrow[MAX_TOKENS][2];
        for (int t = 0; t < tokens; t++) narrow[t][0] = narrow[t][1] = _mm256_setzero_si256();
        int64_t stop = min64(start + run, p->group_tiles);
        for (int64_t i = start; i < stop; i++, tile += tile_bytes(layout)) {
            _mm_prefetch((const char *)(tile + PREFETCH_BYTES), _MM_HINT_T0);
            add_tile(p, layout, tile, values, i, tokens, narrow);
        }
        for (int t = 0; t < tokens; t++)
            for (int h = 0; h < 2; h++) {
                __m256i pairs = _mm256_madd_epi16(narrow[t][h], _mm256_set1_epi16(1));
                wide[t][h] = _mm256_add_epi32(wide[t][h], pairs);
            }
    }
    const float *factor = p->weight.factor + (group * p->num_blocks + block) * BLOCK;
    for (int t = 0; t < tokens; t++) {
        __m256i shift = _mm256_set1_epi32(p->sums[(token + t) * p->weight.num_groups + group]);
        for (int h = 0; h < 2; h++) {
            __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(wide[t][h], shift));
            __m256 scaled = _mm256_mul_ps(sum, _mm256_loadu_ps(factor + 8 * h));
            total[t][h] = _mm256_add_ps(total[t][h], scaled);
        }
    }
}

INLINE void compute(const product *p, int layout, int tokens, int64_t block, int64_t token) {
    __m256 total[MAX_TOKENS][2];
    for (int t = 0; t < tokens; t++) total[t][0] = total[t][1] = _mm256_setzero_ps();
    for (int64_t group = 0; group < p->weight.num_groups; group++)
        add_group(p, layout, tokens, block, group, token, total);
    int64_t width = min64(BLOCK, p->weight.num_out - block * BLOCK);
    for (int t = 0; t < tokens; t++) {
        __m256 scale = _mm256_set1_ps(p->scale[token + t]);
        float row[BLOCK];
        _mm256_storeu_ps(row, _mm256_mul_ps(total[t][0], scale));
        _mm256_storeu_ps(row + 8, _mm256_mul_ps(total[t][1], scale));
        float *out = p->out + (token + t) * p->weight.num_out + block * BLOCK;
        memcpy(out, row, (size_t)width * sizeof *out);
    }
}

#define LINEAR linear_avx2
#include "slabs.h"
#endif
