/* AVX-512 VNNI for a few tokens: one vpdpbusd is 16 outputs x 4 inputs of one token. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx512.h"

#define TARGET __attribute__((target(AVX512_FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(AVX512_FEATURES)))

enum { MAX_TOKENS = 8, FEW_TOKENS = 16, PREFETCH_BYTES = 2048 };

/* Rows of unpacked codes of two blocks, from place `quad` of the group, by `tokens` tokens. */
INLINE void add_rows(
    const product *p, const int8_t *values, int64_t quad, int64_t num_rows, int tokens,
    const uint8_t *const *rows, __m512i (*sums)[2]) {
    for (int64_t row = 0; row < num_rows; row++) {
        const int8_t *x = quad_of(p, values, quad + row);
        __m512i left = _mm512_loadu_si512(rows[0] + row * STEP);
        __m512i right = _mm512_loadu_si512(rows[1] + row * STEP);
        for (int t = 0; t < tokens; t++) {
            __m512i four = broadcast(x + t * STEP);
            sums[t][0] = dot(sums[t][0], left, four);
            sums[t][1] = dot(sums[t][1], right, four);
        }
    }
}

/* A few tokens: tile by tile, so that what is unpacked stays in the nearest cache. */
INLINE void group_of_few(
    const product *p, int layout, int tokens, int64_t token, int64_t group, const int64_t *block,
    __m512i (*sums)[2]) {
    const uint8_t *tile[2] = {tiles_of(p, block[0], group), tiles_of(p, block[1], group)};
    const int8_t *values = values_of(p, token, group);
    const __m512i levels = levels_of(p);
    uint8_t codes[2][5 * STEP] __attribute__((aligned(64)));
    const uint8_t *rows[2] = {codes[0], codes[1]};
    for (int t = 0; t < tokens; t++) sums[t][0] = sums[t][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++) {
        for (int b = 0; b < 2; b++) {
            const uint8_t *packed = tile[b] + tile_bytes(layout) * i;
            _mm_prefetch((const char *)(packed + PREFETCH_BYTES), _MM_HINT_T0);
            unpack_tile(packed, levels, layout, codes[b]);
        }
        add_rows(p, values, planes_of(layout) * i, planes_of(layout), tokens, rows, sums);
    }
}

/* Scale the sums of one group and add them to the totals. */
INLINE void add_scaled(
    const product *p, int tokens, int64_t token, int64_t group, const int64_t *block,
    __m512i (*sums)[2], __m512 (*total)[2]) {
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

INLINE void write_out(
    const product *p, int tokens, int64_t token, const int64_t *block, __m512 (*total)[2]) {
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

/* All groups of `tokens` tokens and two blocks of outputs; block[1] may repeat block[0]. */
INLINE void compute(
    const product *p, int layout, int tokens, int64_t token, const int64_t *block) {
    __m512 total[MAX_TOKENS][2];
    for (int t = 0; t < tokens; t++) total[t][0] = total[t][1] = _mm512_setzero_ps();
    for (int64_t group = 0; group < p->weight.num_groups; group++) {
        __m512i sums[MAX_TOKENS][2];
        group_of_few(p, layout, tokens, token, group, block, sums);
        add_scaled(p, tokens, token, group, block, sums, total);
    }
    write_out(p, tokens, token, block, total);
}

INLINE void few_tokens(const product *p, int layout, int64_t first, int64_t last) {
    for (int64_t at = first; at < last; at += 2) {
        int64_t block[2] = {at, min64(at + 1, last - 1)};
        int64_t token = 0;
        for (; token + 8 <= p->num_tokens; token += 8) compute(p, layout, 8, token, block);
        for (; token + 4 <= p->num_tokens; token += 4) compute(p, layout, 4, token, block);
        for (; token + 2 <= p->num_tokens; token += 2) compute(p, layout, 2, token, block);
        for (; token < p->num_tokens; token++) compute(p, layout, 1, token, block);
    }
}

TARGET void linear_vnni(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    /* Constants, so that each layout gets loops of its own. */
    if (p->num_tokens == 1)
        linear_vnni_one(p, first, last);
    else if (p->num_tokens > FEW_TOKENS)
        linear_vnni_many(p, first, last, scratch);
    else if (p->weight.layout == BITS2)
        few_tokens(p, BITS2, first, last);
    else if (p->weight.layout == BASE3)
        few_tokens(p, BASE3, first, last);
    else
        few_tokens(p, BITS4, first, last);
}
#endif
