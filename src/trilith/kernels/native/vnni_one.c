/* AVX-512 VNNI for one token: codes stay packed, and each block is read once from end to end.
 *
 * One block at a time: a second stream of weights costs a processor's prefetchers more than shared
 * activations save (two blocks at once read 10 GB/s where one reads 27, Zen 4, one thread). */
#include "trilith.h"

#ifdef __x86_64__
#include "avx512.h"

#define VBMI_FEATURES AVX512_FEATURES ",avx512vbmi"
#define TARGET __attribute__((target(AVX512_FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(AVX512_FEATURES)))
#define VBMI_TARGET __attribute__((target(VBMI_FEATURES)))
#define VBMI_INLINE static inline __attribute__((always_inline, target(VBMI_FEATURES)))

/* Far enough to reach into the next block: blocks lie behind each other. */
enum { PREFETCH_BYTES = 4096, NUM_BYTES = 256 };

INLINE __m512i load_ahead(const uint8_t *packed) {
    _mm_prefetch((const char *)(packed + PREFETCH_BYTES), _MM_HINT_T0);
    return _mm512_loadu_si512(packed);
}

/* Add the four 2-bit planes of `codes`, each shifted by its place. */
INLINE void add_planes(__m512i codes, const int8_t *const *x, __m512i *sum) {
    for (int plane = 0; plane < 4; plane++) {
        __m512i mask = _mm512_set1_epi8((char)(3 << (2 * plane)));
        __m512i level = _mm512_and_si512(codes, mask);
        sum[plane] = _mm512_dpbusd_epi32(sum[plane], level, broadcast(x[plane]));
    }
}

INLINE __m512i shifted_back(const __m512i *sum) {
    __m512i low = _mm512_add_epi32(sum[0], _mm512_srai_epi32(sum[1], 2));
    __m512i high = _mm512_add_epi32(_mm512_srai_epi32(sum[2], 4), _mm512_srai_epi32(sum[3], 6));
    return _mm512_add_epi32(low, high);
}

/* With byte v and the next one w = 3 v - 256 digit, a sum of digits times values is
 * (3 sum of v - sum of w) / 256, exact although both sums may wrap. */
INLINE __m512i digits_from(__m512i own, __m512i next) {
    own = _mm512_add_epi32(own, _mm512_add_epi32(own, own));
    return _mm512_srai_epi32(_mm512_sub_epi32(own, next), 8);
}

INLINE __m512i group_bits2(const product *p, const uint8_t *tile, const int8_t *values) {
    __m512i sum[4];
    for (int plane = 0; plane < 4; plane++) sum[plane] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++, tile += STEP) {
        const int8_t *x = values + 16 * i;
        const int8_t *quads[4] = {x, x + 4, x + 8, x + 12};
        add_planes(load_ahead(tile), quads, sum);
    }
    return shifted_back(sum);
}

INLINE __m512i group_base3(const product *p, const uint8_t *tile, const int8_t *values) {
    enum { PLANES = 5 };
    __m512i own[PLANES], next[PLANES];
    for (int plane = 0; plane < PLANES; plane++)
        own[plane] = next[plane] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++, tile += STEP) {
        __m512i bytes = load_ahead(tile);
        for (int plane = 0; plane < PLANES; plane++) {
            __m512i x = broadcast(values + 4 * (PLANES * i + plane));
            own[plane] = _mm512_dpbusd_epi32(own[plane], bytes, x);
            bytes = times3(bytes);
            next[plane] = _mm512_dpbusd_epi32(next[plane], bytes, x);
        }
    }
    for (int plane = 1; plane < PLANES; plane++) {
        own[0] = _mm512_add_epi32(own[0], own[plane]);
        next[0] = _mm512_add_epi32(next[0], next[plane]);
    }
    return digits_from(own[0], next[0]);
}

/* A table turns planes 1 to 4 into 2-bit planes, half as much work as taking all digits so. */
VBMI_INLINE __m512i group_base3_by_table(
    const product *p, const uint8_t *tile, const int8_t *values, const __m512i *table) {
    __m512i sum[4], own = _mm512_setzero_si512(), next = own;
    for (int plane = 0; plane < 4; plane++) sum[plane] = own;
    for (int64_t i = 0; i < p->group_tiles; i++, tile += STEP) {
        const int8_t *x = values + 20 * i;
        const int8_t *quads[4] = {x + 4, x + 8, x + 12, x + 16};
        __m512i bytes = load_ahead(tile);
        __m512i low = _mm512_permutex2var_epi8(table[0], bytes, table[1]);
        __m512i high = _mm512_permutex2var_epi8(table[2], bytes, table[3]);
        own = _mm512_dpbusd_epi32(own, bytes, broadcast(x));
        next = _mm512_dpbusd_epi32(next, times3(bytes), broadcast(x));
        add_planes(_mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high), quads, sum);
    }
    return _mm512_add_epi32(digits_from(own, next), shifted_back(sum));
}

INLINE __m512i group_bits4(const product *p, const uint8_t *tile, const int8_t *values) {
    __m512i sum[4], mask = _mm512_set1_epi8(15), levels = levels_of(p);
    for (int plane = 0; plane < 4; plane++) sum[plane] = _mm512_setzero_si512();
    for (int64_t i = 0; i < p->group_tiles; i++, tile += 2 * STEP) {
        for (int half = 0; half < 2; half++) {
            __m512i low = load_ahead(tile + STEP * half);
            __m512i high = _mm512_srli_epi16(low, 4);
            low = _mm512_shuffle_epi8(levels, _mm512_and_si512(low, mask));
            high = _mm512_shuffle_epi8(levels, _mm512_and_si512(high, mask));
            const int8_t *x = values + 16 * i + 8 * half;
            sum[2 * half] = _mm512_dpbusd_epi32(sum[2 * half], low, broadcast(x));
            sum[2 * half + 1] = _mm512_dpbusd_epi32(sum[2 * half + 1], high, broadcast(x + 4));
        }
    }
    __m512i even = _mm512_add_epi32(sum[0], sum[2]);
    return _mm512_add_epi32(even, _mm512_add_epi32(sum[1], sum[3]));
}

INLINE void finish(const product *p, int64_t block, __m512 total) {
    int64_t width = min64(BLOCK, p->weight.num_out - block * BLOCK);
    __mmask16 inside = (__mmask16)(0xffff >> (BLOCK - width));
    total = _mm512_mul_ps(total, _mm512_set1_ps(p->scale[0]));
    _mm512_mask_storeu_ps(p->out + block * BLOCK, inside, total);
}

INLINE __m512 add_scaled(
    const product *p, int64_t block, int64_t group, __m512i sums, __m512 total) {
    const float *factor = p->weight.factor + (group * p->num_blocks + block) * BLOCK;
    __m512i whole = _mm512_sub_epi32(sums, _mm512_set1_epi32(p->sums[group]));
    __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_loadu_ps(factor));
    return _mm512_add_ps(total, part);
}

/* For each block, all groups; `sums` is an expression of tile and values. */
#define FOR_BLOCKS(sums)                                                      \
    for (int64_t block = first; block < last; block++) {                      \
        __m512 total = _mm512_setzero_ps();                                   \
        for (int64_t group = 0; group < p->weight.num_groups; group++) {      \
            const uint8_t *tile = tiles_of(p, block, group);                  \
            const int8_t *values = values_of(p, 0, group);                    \
            total = add_scaled(p, block, group, sums, total);                 \
        }                                                                     \
        finish(p, block, total);                                              \
    }

/* From a byte to its digits 1 to 4, two bits each, lowest first. */
static uint8_t digits_of[NUM_BYTES];

__attribute__((constructor)) static void fill_digits_of(void) {
    for (int byte = 0; byte < NUM_BYTES; byte++) {
        uint8_t left = (uint8_t)(byte * 3), code = 0;
        for (int place = 0; place < 8; place += 2, left = (uint8_t)(left * 3))
            code = (uint8_t)(code | (left * 3 >> 8) << place);
        digits_of[byte] = code;
    }
}

VBMI_TARGET static void base3_by_table(const product *p, int64_t first, int64_t last) {
    __m512i table[4];
    for (int i = 0; i < 4; i++) table[i] = _mm512_loadu_si512(digits_of + STEP * i);
    FOR_BLOCKS(group_base3_by_table(p, tile, values, table))
}

TARGET void linear_vnni_one(const product *p, int64_t first, int64_t last) {
    if (p->weight.layout == BITS2) {
        FOR_BLOCKS(group_bits2(p, tile, values))
    } else if (p->weight.layout == BITS4) {
        FOR_BLOCKS(group_bits4(p, tile, values))
    } else if (cpu_has_vbmi()) {
        base3_by_table(p, first, last);
    } else {
        FOR_BLOCKS(group_base3(p, tile, values))
    }
}
#endif
