/* NEON with dotprod (Armv8.2): one sdot is 4 outputs x 4 inputs of one token. */
#include "trilith.h"

#ifdef __aarch64__
#include <arm_neon.h>

#ifdef __clang__
#define FEATURES "dotprod"
#else
#define FEATURES "arch=armv8.2-a+dotprod"
#endif
#define TARGET __attribute__((target(FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(FEATURES)))

enum { MAX_TOKENS = 4, QUARTERS = 4, LANES = 16, PREFETCH_BYTES = 1024 };

/* A third of 256 is 85.3: a digit is 1 from 86 and 2 from 171. The byte goes on to the next one. */
INLINE int8x16_t next_digit(uint8x16_t *bytes) {
    uint8x16_t first = vcgtq_u8(*bytes, vdupq_n_u8(85));
    uint8x16_t second = vcgtq_u8(*bytes, vdupq_n_u8(170));
    *bytes = vaddq_u8(*bytes, vaddq_u8(*bytes, *bytes));
    /* True is -1. */
    return vnegq_s8(vreinterpretq_s8_u8(vaddq_u8(first, second)));
}

/* The 4 outputs of a quarter of a plane. Planes are asked for in order: `left` keeps what is left
 * of the digits. */
INLINE int8x16_t quarter_plane(
    const uint8_t *tile, uint8x16_t levels, int layout, int plane, int quarter, uint8x16_t *left) {
    int bits = layout == BITS4 ? 4 : 2, per_byte = 8 / bits;
    tile += LANES * quarter + (layout == BITS4 ? STEP * (plane / per_byte) : 0);
    uint8x16_t packed = vld1q_u8(tile);
    if (layout == BASE3) {
        if (plane == 0) *left = packed;
        return next_digit(left);
    }
    uint8x16_t codes = vshlq_u8(packed, vdupq_n_s8((int8_t)(-(plane % per_byte) * bits)));
    codes = vandq_u8(codes, vdupq_n_u8((uint8_t)((1 << bits) - 1)));
    return vreinterpretq_s8_u8(layout == BITS4 ? vqtbl1q_u8(levels, codes) : codes);
}

INLINE int8x16_t broadcast(const int8_t *values) {
    int32_t four;
    memcpy(&four, values, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* Clang before 16 has vdotq_s32 only where the whole file is for processors with it. */
INLINE int32x4_t dot(int32x4_t sums, int8x16_t codes, int8x16_t values) {
#ifdef __clang__
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(codes), "w"(values));
    return sums;
#else
    return vdotq_s32(sums, codes, values);
#endif
}

INLINE void add_tile(
    const product *p, int layout, const uint8_t *tile, const int8_t *values, int64_t i, int tokens,
    int32x4_t (*sums)[QUARTERS]) {
    uint8x16_t levels = vld1q_u8(p->weight.levels);
    uint8x16_t left[QUARTERS] = {levels, levels, levels, levels};
    for (int plane = 0; plane < planes_of(layout); plane++) {
        const int8_t *quad = quad_of(p, values, i * planes_of(layout) + plane);
        int8x16_t x[MAX_TOKENS];
        for (int t = 0; t < tokens; t++) x[t] = broadcast(quad + t * STEP);
        for (int q = 0; q < QUARTERS; q++) {
            int8x16_t codes = quarter_plane(tile, levels, layout, plane, q, left + q);
            for (int t = 0; t < tokens; t++) sums[t][q] = dot(sums[t][q], codes, x[t]);
        }
    }
}

/* Add the sums of one group to the totals of `tokens` tokens x 16 outputs. */
INLINE void add_group(
    const product *p, int layout, int tokens, int64_t block, int64_t group, int64_t token,
    float32x4_t (*total)[QUARTERS]) {
    const uint8_t *tile = tiles_of(p, block, group);
    const int8_t *values = values_of(p, token, group);
    const float *factor = p->weight.factor + (group * p->num_blocks + block) * BLOCK;
    int32x4_t sums[MAX_TOKENS][QUARTERS];
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < QUARTERS; q++) sums[t][q] = vdupq_n_s32(0);
    for (int64_t i = 0; i < p->group_tiles; i++, tile += tile_bytes(layout)) {
        __builtin_prefetch(tile + PREFETCH_BYTES);
        add_tile(p, layout, tile, values, i, tokens, sums);
    }
    for (int t = 0; t < tokens; t++) {
        int32x4_t shift = vdupq_n_s32(p->sums[(token + t) * p->weight.num_groups + group]);
        for (int q = 0; q < QUARTERS; q++) {
            float32x4_t sum = vcvtq_f32_s32(vsubq_s32(sums[t][q], shift));
            total[t][q] = vaddq_f32(total[t][q], vmulq_f32(sum, vld1q_f32(factor + 4 * q)));
        }
    }
}

INLINE void compute(const product *p, int layout, int tokens, int64_t block, int64_t token) {
    float32x4_t total[MAX_TOKENS][QUARTERS];
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < QUARTERS; q++) total[t][q] = vdupq_n_f32(0.0f);
    for (int64_t group = 0; group < p->weight.num_groups; group++)
        add_group(p, layout, tokens, block, group, token, total);
    int64_t width = min64(BLOCK, p->weight.num_out - block * BLOCK);
    for (int t = 0; t < tokens; t++) {
        float row[BLOCK];
        for (int q = 0; q < QUARTERS; q++)
            vst1q_f32(row + 4 * q, vmulq_n_f32(total[t][q], p->scale[token + t]));
        float *out = p->out + (token + t) * p->weight.num_out + block * BLOCK;
        memcpy(out, row, (size_t)width * sizeof *out);
    }
}

#define LINEAR linear_neon
#include "slabs.h"
#endif
