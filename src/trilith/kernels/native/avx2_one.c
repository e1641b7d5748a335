/* AVX2 for one token: codes of 2 bits stay where they lie in their bytes, and each block is read once
 * from end to end. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx2.h"

#define TARGET AVX2_TARGET
#define INLINE AVX2_INLINE

/* A code in the second place of two is four times itself: its products of pairs are at most
 * 4 * 2 * 2 * 127, and 16 of them fit 16 bits. Prefetching reaches into the next block. */
enum { RUN_TILES = 8, PREFETCH_BYTES = 4096 };

INLINE __m256i add_masked(__m256i sum, __m256i codes, int mask, __m256i four) {
    return add_products(sum, _mm256_and_si256(codes, _mm256_set1_epi8((char)mask)), four);
}

/* Sums of 8 outputs from one half of each tile: of codes in the first and in the second place. */
INLINE void add_half(const uint8_t *half, const __m256i *four, __m256i *narrow) {
    __m256i codes = _mm256_loadu_si256((const __m256i *)half);
    __m256i upper = _mm256_srli_epi16(codes, 4);
    narrow[0] = add_masked(narrow[0], codes, 3, four[0]);
    narrow[1] = add_masked(narrow[1], codes, 12, four[1]);
    narrow[0] = add_masked(narrow[0], upper, 3, four[2]);
    narrow[1] = add_masked(narrow[1], upper, 12, four[3]);
}

/* The sums of one group of a block: of 16 outputs, in two halves. */
INLINE void group_sums(const product *p, int64_t block, int64_t group, __m256i *sums) {
    const uint8_t *tile = tiles_of(p, block, group);
    const int8_t *values = values_of(p, 0, group);
    __m256i wide[2][2];
    for (int h = 0; h < 2; h++) wide[h][0] = wide[h][1] = _mm256_setzero_si256();
    for (int64_t start = 0; start < p->group_tiles; start += RUN_TILES) {
        __m256i narrow[2][2];
        for (int h = 0; h < 2; h++) narrow[h][0] = narrow[h][1] = _mm256_setzero_si256();
        int64_t stop = min64(start + RUN_TILES, p->group_tiles);
        for (int64_t i = start; i < stop; i++, tile += STEP, values += 4 * QUAD) {
            __m256i four[4];
            _mm_prefetch((const char *)(tile + PREFETCH_BYTES), _MM_HINT_T0);
            for (int plane = 0; plane < 4; plane++) four[plane] = broadcast(values + plane * QUAD);
            add_half(tile, four, narrow[0]);
            add_half(tile + 32, four, narrow[1]);
        }
        for (int h = 0; h < 2; h++)
            for (int place = 0; place < 2; place++)
                wide[h][place] = widen_into(wide[h][place], narrow[h][place]);
    }
    for (int h = 0; h < 2; h++)
        sums[h] = _mm256_add_epi32(wide[h][0], _mm256_srai_epi32(wide[h][1], 2));
}

TARGET void linear_avx2_bits2(const product *p, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++) {
        __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t group = 0; group < p->weight.num_groups; group++) {
            __m256i sums[2];
            group_sums(p, block, group, sums);
            for (int h = 0; h < 2; h++)
                total[h] = _mm256_add_ps(total[h], scaled_sum(p, sums[h], 0, group, block, h));
        }
        write_outputs(p, block, 0, total[0], total[1]);
    }
}
#endif
