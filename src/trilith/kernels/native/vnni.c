/* AVX-512 VNNI: one vpdpbusd is 16 outputs x 4 inputs of one token. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx512_digits.h"

#define TARGET __attribute__((target(AVX512_FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(AVX512_FEATURES)))

enum { MAX_TOKENS = 8, PREFETCH_BYTES = 2048 };

INLINE __m512i broadcast(const int8_t *values) {
    int32_t four;
    memcpy(&four, values, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Planes are asked for in order: `left` keeps what is left of the digits. */
INLINE __m512i plane_of(
    const uint8_t *tile, __m512i levels, int layout, int plane, __m512i *left) {
    int bits = layout == BITS4 ? 4 : 2, per_byte = 8 / bits;
    __m512i packed = _mm512_loadu_si512(tile + (layout == BITS4 ? 64 * (plane / per_byte) : 0));
    if (layout == BASE3) {
        if (plane == 0) *left = packed;
        return next_digit(left);
    }
    __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    __m512i codes = _mm512_and_si512(_mm512_srli_epi16(packed, plane % per_byte * bits), mask);
    return layout == BITS2 ? codes : _mm512_shuffle_epi8(levels, codes);
}

/* Decoding: digits stay in their bytes. With byte v and the next one w = 3 v - 256 digit, a sum of
 * digits times values is (3 sum of v - sum of w) / 256, exact although both sums may wrap. */
INLINE void digits_of_one(
    const product *p, int64_t token, int64_t group, const int64_t *block, __m512i *sums) {
    const uint8_t *tile[2] = {tiles_of(p, block[0], group), tiles_of(p, block[1], group)};
    const int8_t *values = values_of(p, token, group);
    __m512i own[2][2], next[2][2];
    for (int b = 0; b < 2; b++)
        for (int k = 0; k < 2; k++) own[b][k] = next[b][k] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++) {
        for (int b = 0; b < 2; b++) {
            const uint8_t *packed = tile[b] + 64 * i;
            _mm_prefetch((const char *)(packed + PREFETCH_BYTES), _MM_HINT_T0);
            __m512i bytes = _mm512_loadu_si512(packed);
            for (int plane = 0; plane < planes_of(BASE3); plane++) {
                __m512i x = broadcast(quad_of(p, values, planes_of(BASE3) * i + plane));
                own[b][plane % 2] = _mm512_dpbusd_epi32(own[b][plane % 2], bytes, x);
                bytes = times3(bytes);
                next[b][plane % 2] = _mm512_dpbusd_epi32(next[b][plane % 2], bytes, x);
            }
        }
    }
    for (int b = 0; b < 2; b++) {
        __m512i all = _mm512_add_epi32(own[b][0], own[b][1]);
        __m512i rest = _mm512_add_epi32(next[b][0], next[b][1]);
        all = _mm512_add_epi32(all, _mm512_add_epi32(all, all));
        sums[b] = _mm512_srai_epi32(_mm512_sub_epi32(all, rest), 8);
    }
}

/* Decoding: 2-bit codes stay where they are in their byte, and the sums are shifted at the end. */
INLINE void group_of_one(
    const product *p, int64_t token, int64_t group, const int64_t *block, __m512i *sums) {
    const uint8_t *tile[2] = {tiles_of(p, block[0], group), tiles_of(p, block[1], group)};
    const int8_t *values = values_of(p, token, group);
    __m512i sum[2][4];
    for (int b = 0; b < 2; b++)
        for (int plane = 0; plane < 4; plane++) sum[b][plane] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++) {
        const int8_t *x = quad_of(p, values, 4 * i);
        for (int b = 0; b < 2; b++) {
            const uint8_t *packed = tile[b] + 64 * i;
            _mm_prefetch((const char *)(packed + PREFETCH_BYTES), _MM_HINT_T0);
            __m512i bytes = _mm512_loadu_si512(packed);
            for (int plane = 0; plane < 4; plane++) {
                __m512i mask = _mm512_set1_epi8((char)(3 << (2 * plane)));
                __m512i codes = _mm512_and_si512(bytes, mask);
                sum[b][plane] = _mm512_dpbusd_epi32(sum[b][plane], codes, broadcast(x + 4 * plane));
            }
        }
    }
    for (int b = 0; b < 2; b++) {
        __m512i low = _mm512_add_epi32(sum[b][0], _mm512_srai_epi32(sum[b][1], 2));
        __m512i high =
            _mm512_add_epi32(_mm512_srai_epi32(sum[b][2], 4), _mm512_srai_epi32(sum[b][3], 6));
        sums[b] = _mm512_add_epi32(low, high);
    }
}

INLINE void group_of_many(
    const product *p, int layout, int tokens, int64_t token, int64_t group, const int64_t *block,
    __m512i (*sums)[2]) {
    const uint8_t *tile[2] = {tiles_of(p, block[0], group), tiles_of(p, block[1], group)};
    const int8_t *values = values_of(p, token, group);
    const __m128i *table = (const __m128i *)p->weight.levels;
    __m512i levels = _mm512_broadcast_i32x4(_mm_loadu_si128(table));
    for (int t = 0; t < tokens; t++) sums[t][0] = sums[t][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++) {
        const uint8_t *at[2] = {tile[0] + tile_bytes(layout) * i, tile[1] + tile_bytes(layout) * i};
        __m512i digits[2] = {levels, levels};
        if (tokens == 1)
            for (int b = 0; b < 2; b++)
                _mm_prefetch((const char *)(at[b] + PREFETCH_BYTES), _MM_HINT_T0);
        for (int plane = 0; plane < planes_of(layout); plane++) {
            __m512i codes[2];
            for (int b = 0; b < 2; b++)
                codes[b] = plane_of(at[b], levels, layout, plane, digits + b);
            const int8_t *quad = quad_of(p, values, planes_of(layout) * i + plane);
            for (int t = 0; t < tokens; t++) {
                __m512i four = broadcast(quad + t * STEP);
                sums[t][0] = _mm512_dpbusd_epi32(sums[t][0], codes[0], four);
                sums[t][1] = _mm512_dpbusd_epi32(sums[t][1], codes[1], four);
            }
        }
    }
}

/* All groups of `tokens` tokens and two blocks of outputs; block[1] may repeat block[0]. */
INLINE void compute(
    const product *p, int layout, int tokens, int64_t token, const int64_t *block) {
    __m512 total[MAX_TOKENS][2];
    for (int t = 0; t < tokens; t++) total[t][0] = total[t][1] = _mm512_setzero_ps();
    for (int64_t group = 0; group < p->weight.num_groups; group++) {
        __m512i sums[MAX_TOKENS][2];
        if (tokens == 1 && layout == BITS2)
            group_of_one(p, token, group, block, sums[0]);
        else if (tokens == 1 && layout == BASE3)
            digits_of_one(p, token, group, block, sums[0]);
        else
            group_of_many(p, layout, tokens, token, group, block, sums);
        const float *factor = p->weight.factor + group * p->num_blocks * BLOCK;
        for (int t = 0; t < tokens; t++) {
            __m512i shift = _mm512_set1_epi32(p->sums[(token + t) * p->weight.num_groups + group]);
            for (int b = 0; b < 2; b++) {
                __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[t][b], shift));
                __m512 scaled = _mm512_mul_ps(sum, _mm512_loadu_ps(factor + block[b] * BLOCK));
                total[t][b] = _mm512_add_ps(total[t][b], scaled);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        __m512 scale = _mm512_set1_ps(p->scale[token + t]);
        for (int b = 0; b < 2; b++) {
            int64_t width = min64(BLOCK, p->weight.num_out - block[b] * BLOCK);
            float *out = p->out + (token + t) * p->weight.num_out + block[b] * BLOCK;
            __mmask16 inside = (__mmask16)(0xffff >> (BLOCK - width));
            _mm512_mask_storeu_ps(out, inside, _mm512_mul_ps(total[t][b], scale));
        }
    }
}

INLINE void slab(const product *p, int layout, int64_t token, const int64_t *block) {
    int64_t end = min64(token + SLAB, p->num_tokens);
    for (; token + 8 <= end; token += 8) compute(p, layout, 8, token, block);
    for (; token + 2 <= end; token += 2) compute(p, layout, 2, token, block);
    for (; token < end; token++) compute(p, layout, 1, token, block);
}

TARGET void linear_vnni(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    (void)scratch;
    for (int64_t token = 0; token < p->num_tokens; token += SLAB)
        for (int64_t at = first; at < last; at += 2) {
            int64_t block[2] = {at, min64(at + 1, last - 1)};
            /* Constants, so that each layout gets loops of its own. */
            if (p->weight.layout == BITS2)
                slab(p, BITS2, token, block);
            else if (p->weight.layout == BASE3)
                slab(p, BASE3, token, block);
            else
                slab(p, BITS4, token, block);
        }
}
#endif
