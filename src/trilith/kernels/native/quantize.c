/* Activations to int8 by the largest magnitude of a token: the bits of quant.quantize_activation.
 *
 * One body, compiled for several instruction sets: plain loops that compilers vectorize. */
#include "trilith.h"

#define MIN_ABSMAX 1e-5f
/* Adding 1.5 * 2^23 rounds half to even, and the low byte of the sum is the int8 value. */
#define ROUND_MAGIC 12582912.0f

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* As whole numbers, magnitudes keep their order and NaN is the largest. */
static inline __attribute__((always_inline)) float absmax_of(const float *x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    float absmax;
    memcpy(&absmax, &largest, sizeof absmax);
    return absmax < MIN_ABSMAX ? MIN_ABSMAX : absmax;
}

static inline __attribute__((always_inline)) int32_t round_step(
    const float *x, int64_t count, float inv_scale, int8_t *values) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
        values[i] = (int8_t)(uint8_t)bits_of(x[i] * inv_scale + ROUND_MAGIC);
        sum += values[i];
    }
    return sum;
}

static inline __attribute__((always_inline)) void quantize_body(
    const product *p, const float *x, int64_t first, int64_t last) {
    int64_t num_groups = p->weight.num_groups, group_in = p->weight.num_in / num_groups;
    for (int64_t token = first; token < last; token++) {
        const float *row = x + token * p->weight.num_in;
        float absmax = absmax_of(row, p->weight.num_in);
        /* Torch divides a number by a tensor in these two steps. */
        float inv_scale = 1.0f / absmax * 127.0f;
        p->scale[token] = absmax / 127.0f;
        for (int64_t group = 0; group < num_groups; group++) {
            int8_t *values = values_of(p, token, group);
            int32_t sum = 0;
            for (int64_t i = 0; i < p->group_steps * STEP; i += STEP, values += step_bytes(p)) {
                int64_t count = min64(STEP, group_in - i);
                /* Tiles of 20 inputs may end in a step of their own. */
                count = count < 0 ? 0 : count;
                if (count < STEP) {
                    memset(values, 0, STEP);
                    sum += round_step(row + group * group_in + i, count, inv_scale, values);
                } else {
                    sum += round_step(row + group * group_in + i, STEP, inv_scale, values);
                }
            }
            p->sums[token * num_groups + group] = sum * (int32_t)p->weight.offset;
        }
    }
}

void quantize_portable(const product *p, const float *x, int64_t first, int64_t last) {
    quantize_body(p, x, first, last);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) void quantize_avx2(
    const product *p, const float *x, int64_t first, int64_t last) {
    quantize_body(p, x, first, last);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) void quantize_avx512(
    const product *p, const float *x, int64_t first, int64_t last) {
    quantize_body(p, x, first, last);
}
#endif
