/* AVX2 for one token: codes stay where they lie in their bytes, and each block is read once from end
 * to end. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx2.h"

#define TARGET AVX2_TARGET
#define INLINE AVX2_INLINE

/* Of 2 bits, a code in the second place is four times itself: its products of pairs are at most
 * 4 * 2 * 2 * 127, and 16 of them fit 16 bits. Of base 3, 60 of at most 2 * 2 * 127 do. */
enum { BITS2_TILES = 8, BASE3_TILES = 12 };
/* Prefetching reaches into the next block. */
enum { PREFETCH_BYTES = 4096, MAX_PLANES = 5 };

INLINE __m256i add_masked(__m256i sum, __m256i codes, int mask, __m256i four) {
    return add_products(sum, _mm256_and_si256(codes, _mm256_set1_epi8((char)mask)), four);
}

/* Sums of 8 outputs from one half of a tile: of codes in the first and in the second place. */
INLINE void add_bits2(__m256i codes, const __m256i *four, __m256i *narrow) {
    __m256i upper = _mm256_srli_epi16(codes, 4);
    narrow[0] = add_masked(narrow[0], codes, 3, four[0]);
    narrow[1] = add_masked(narrow[1], codes, 12, four[1]);
    narrow[0] = add_masked(narrow[0], upper, 3, four[2]);
    narrow[1] = add_masked(narrow[1], upper, 12, four[3]);
}

INLINE void add_base3(__m256i bytes, const __m256i *four, __m256i *narrow) {
    for (int plane = 0; plane < MAX_PLANES; plane++)
        narrow[plane % 2] = add_products(narrow[plane % 2], next_digit(&bytes), four[plane]);
}

/* The sums of one group of a block: of 16 outputs, in two halves. */
INLINE void group_sums(
    const product *p, int layout, int64_t block, int64_t group, __m256i *sums) {
    const uint8_t *tile = tiles_of(p, block, group);
    const int8_t *values = values_of(p, 0, group);
    int run = layout == BITS2 ? BITS2_TILES : BASE3_TILES, planes = planes_of(layout);
    __m256i wide[2][2];
    for (int h = 0; h < 2; h++) wide[h][0] = wide[h][1] = _mm256_setzero_si256();
    for (int64_t start = 0; start < p->group_tiles; start += run) {
        __m256i narrow[2][2];
        for (int h = 0; h < 2; h++) narrow[h][0] = narrow[h][1] = _mm256_setzero_si256();
        int64_t stop = min64(start + run, p->group_tiles);
        for (int64_t i = start; i < stop; i++, tile += STEP, values += planes * QUAD) {
            __m256i four[MAX_PLANES];
            _mm_prefetch((const char *)(tile + PREFETCH_BYTES), _MM_HINT_T0);
            for (int plane = 0; plane < planes; plane++)
                four[plane] = broadcast(values + plane * QUAD);
            for (int h = 0; h < 2; h++) {
                __m256i bytes = _mm256_loadu_si256((const __m256i *)tile + h);
                if (layout == BITS2)
                    add_bits2(bytes, four, narrow[h]);
                else
                    add_base3(bytes, four, narrow[h]);
            }
        }
        for (int h = 0; h < 2; h++)
            for (int place = 0; place < 2; place++)
                wide[h][place] = widen_into(wide[h][place], narrow[h][place]);
    }
    int second = layout == BITS2 ? 2 : 0;
    for (int h = 0; h < 2; h++)
        sums[h] = _mm256_add_epi32(wide[h][0], _mm256_srai_epi32(wide[h][1], second));
}

INLINE void one_block(const product *p, int layout, int64_t block) {
    __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t group = 0; group < p->weight.num_groups; group++) {
        __m256i sums[2];
        group_sums(p, layout, block, group, sums);
        for (int h = 0; h < 2; h++)
            total[h] = _mm256_add_ps(total[h], scaled_sum(p, sums[h], 0, group, block, h));
    }
    write_outputs(p, block, 0, total[0], total[1]);
}

TARGET void linear_avx2_one(const product *p, int64_t first, int64_t last) {
    /* Constants, so that each layout gets loops of its own. */
    for (int64_t block = first; block < last; block++)
        if (p->weight.layout == BITS2)
            one_block(p, BITS2, block);
        else
            one_block(p, BASE3, block);
}
#endif
