/* AVX2 for a few tokens: maddubs into 16-bit sums, widened to 32 bits before they can overflow. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx2.h"

#define TARGET AVX2_TARGET
#define INLINE AVX2_INLINE

enum { MAX_TOKENS = 4, FEW_TOKENS = 8, PREFETCH_BYTES = 1024 };

INLINE void add_tile(
    const product *p, int layout, const uint8_t *tile, const int8_t *values, int64_t i,
    int tokens, __m256i (*narrow)[2]) {
    __m256i levels = levels_of(p), left[2] = {levels, levels};
    for (int plane = 0; plane < planes_of(layout); plane++) {
        __m256i low = half_plane(tile, levels, layout, plane, 0, left);
        __m256i high = half_plane(tile, levels, layout, plane, 1, left + 1);
        const int8_t *quad = quad_of(p, values, i * planes_of(layout) + plane);
        for (int t = 0; t < tokens; t++) {
            __m256i x = broadcast(quad + t * STEP);
            narrow[t][0] = add_products(narrow[t][0], low, x);
            narrow[t][1] = add_products(narrow[t][1], high, x);
        }
    }
}

/* Add the sums of one group to the totals of `tokens` tokens x 16 outputs. */
INLINE void add_group(
    const product *p, int layout, int tokens, int64_t block, int64_t group, int64_t token,
    __m256 (*total)[2]) {
    int64_t run = narrow_planes(layout) / planes_of(layout);
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
            for (int h = 0; h < 2; h++) wide[t][h] = widen_into(wide[t][h], narrow[t][h]);
    }
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < 2; h++) {
            __m256 part = scaled_sum(p, wide[t][h], token + t, group, block, h);
            total[t][h] = _mm256_add_ps(total[t][h], part);
        }
}

INLINE void compute(const product *p, int layout, int tokens, int64_t block, int64_t token) {
    __m256 total[MAX_TOKENS][2];
    for (int t = 0; t < tokens; t++) total[t][0] = total[t][1] = _mm256_setzero_ps();
    for (int64_t group = 0; group < p->weight.num_groups; group++)
        add_group(p, layout, tokens, block, group, token, total);
    for (int t = 0; t < tokens; t++) write_outputs(p, block, token + t, total[t][0], total[t][1]);
}

#define LINEAR linear_avx2_few
#include "slabs.h"

TARGET void linear_avx2(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    if (p->num_tokens > FEW_TOKENS)
        linear_avx2_many(p, first, last, scratch);
    else if (p->num_tokens == 1 && p->weight.layout != BITS4)
        linear_avx2_one(p, first, last);
    else
        linear_avx2_few(p, first, last, scratch);
}
#endif
