/* The float parts of a decoding step: one body in generic vectors, compiled per instruction set. */
#include "decode.h"

#include <math.h>

enum { LANES = 8 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef int16_t signed_shorts __attribute__((vector_size(2 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

/* A macro, since a function that returns such a vector has another ABI per instruction set. */
#define LOAD(type, from) \
    ({ \
        type loaded_; \
        memcpy(&loaded_, from, sizeof loaded_); \
        loaded_; \
    })
#define BODY static inline __attribute__((always_inline)) void

#define SUM(vector, into) \
    do { \
        floats summed_ = vector; \
        for (int half_ = LANES / 2; half_; half_ /= 2) \
            for (int lane_ = 0; lane_ < half_; lane_++) summed_[lane_] += summed_[lane_ + half_]; \
        into = summed_[0]; \
    } while (0)

/* Dot product of float x with rows of another type; `widen` turns LANES or one of them to float. */
#define DOT(x, row, count, type, widen, widen_one, into) \
    do { \
        floats a_ = {0}, b_ = {0}, c_ = {0}, d_ = {0}; \
        int64_t i_ = 0; \
        for (; i_ + 4 * LANES <= count; i_ += 4 * LANES) { \
            a_ += LOAD(floats, x + i_) * widen(LOAD(type, row + i_)); \
            b_ += LOAD(floats, x + i_ + LANES) * widen(LOAD(type, row + i_ + LANES)); \
            c_ += LOAD(floats, x + i_ + 2 * LANES) * widen(LOAD(type, row + i_ + 2 * LANES)); \
            d_ += LOAD(floats, x + i_ + 3 * LANES) * widen(LOAD(type, row + i_ + 3 * LANES)); \
        } \
        for (; i_ + LANES <= count; i_ += LANES) \
            a_ += LOAD(floats, x + i_) * widen(LOAD(type, row + i_)); \
        SUM((a_ + b_) + (c_ + d_), into); \
        for (; i_ < count; i_++) into += x[i_] * widen_one(row[i_]); \
    } while (0)

#define SAME(v) (v)
#define FROM_BF16(v) ((floats)(__builtin_convertvector(v, ints) << 16))
/* In steps of twice the width: gcc 12 takes the direct way element by element. */
#define FROM_INT8(v) \
    __builtin_convertvector( \
        __builtin_convertvector(__builtin_convertvector(v, signed_shorts), ints), floats)

static inline __attribute__((always_inline)) float bf16_to_float(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* exp within 2 ulp, in a form that compilers vectorize (Cephes expf). */
static inline __attribute__((always_inline)) float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t word = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &word, sizeof power);
    return p * power;
}

BODY rms_norm_body(const float *x, const float *norm, int64_t width, float eps, float *out) {
    float squares;
    DOT(x, x, width, floats, SAME, SAME, squares);
    float inv_rms = 1.0f / sqrtf(squares / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * inv_rms * norm[i];
}

BODY rotate_body(float *x, const float *cos, const float *sin, int64_t width) {
    float *second = x + width / 2;
    for (int64_t i = 0; i < width / 2; i++) {
        float left = x[i], right = second[i];
        x[i] = left * cos[i] - right * sin[i];
        second[i] = right * cos[i + width / 2] + left * sin[i + width / 2];
    }
}

BODY attend_body(
    const float *q, const float *keys, const float *values, int64_t num_seen, int64_t width,
    float *scores, float *out) {
    float scale = 1.0f / sqrtf((float)width), largest = -INFINITY, total;
    floats sums = {0};
    int64_t done = 0;
    for (int64_t s = 0; s < num_seen; s++) {
        const float *key = keys + s * width;
        float score;
        DOT(q, key, width, floats, SAME, SAME, score);
        scores[s] = score * scale;
        largest = scores[s] > largest ? scores[s] : largest;
    }
    for (int64_t s = 0; s < num_seen; s++) scores[s] = exponential(scores[s] - largest);
    for (; done + LANES <= num_seen; done += LANES) sums += LOAD(floats, scores + done);
    SUM(sums, total);
    for (; done < num_seen; done++) total += scores[done];
    for (int64_t i = 0; i < width; i++) out[i] = 0.0f;
    for (int64_t s = 0; s < num_seen; s++) {
        float share = scores[s] / total;
        for (int64_t i = 0; i < width; i++) out[i] += share * values[s * width + i];
    }
}

BODY activate_body(int64_t kind, const float *hidden, int64_t width, float *out) {
    const float *value = hidden + width;
    for (int64_t i = 0; i < width; i++) {
        float gate = hidden[i], kept = gate > 0.0f ? gate : 0.0f;
        if (kind == SWIGLU)
            out[i] = gate / (1.0f + exponential(-gate)) * value[i];
        else if (kind == GATED_RELU2)
            out[i] = kept * kept * value[i];
        else
            out[i] = kept * kept;
    }
}

BODY add_body(float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

BODY head_rows_body(const model *m, const float *x, int64_t first, int64_t last, float *out) {
    int64_t width = m->width;
    for (int64_t at = first; at < last; at++) {
        if (m->head_kind == ROWS_INT8) {
            const int8_t *row = (const int8_t *)m->head + at * width;
            DOT(x, row, width, bytes, FROM_INT8, (float), out[at]);
            out[at] *= m->head_scale[at];
        } else if (m->head_kind == ROWS_BF16) {
            const uint16_t *row = (const uint16_t *)m->head + at * width;
            DOT(x, row, width, shorts, FROM_BF16, bf16_to_float, out[at]);
        } else {
            const float *row = (const float *)m->head + at * width;
            DOT(x, row, width, floats, SAME, SAME, out[at]);
        }
    }
}

#define FUNCTIONS(suffix, TARGET) \
    TARGET static void rms_norm_##suffix( \
        const float *x, const float *norm, int64_t width, float eps, float *out) { \
        rms_norm_body(x, norm, width, eps, out); \
    } \
    TARGET static void rotate_##suffix( \
        float *x, const float *cos, const float *sin, int64_t width) { \
        rotate_body(x, cos, sin, width); \
    } \
    TARGET static void attend_##suffix( \
        const float *q, const float *keys, const float *values, int64_t num_seen, int64_t width, \
        float *scores, float *out) { \
        attend_body(q, keys, values, num_seen, width, scores, out); \
    } \
    TARGET static void activate_##suffix( \
        int64_t kind, const float *hidden, int64_t width, float *out) { \
        if (kind == SWIGLU) \
            activate_body(SWIGLU, hidden, width, out); \
        else if (kind == GATED_RELU2) \
            activate_body(GATED_RELU2, hidden, width, out); \
        else \
            activate_body(RELU2, hidden, width, out); \
    } \
    TARGET static void add_##suffix(float *x, const float *y, int64_t count) { \
        add_body(x, y, count); \
    } \
    TARGET static void head_rows_##suffix( \
        const model *m, const float *x, int64_t first, int64_t last, float *out) { \
        head_rows_body(m, x, first, last, out); \
    } \
    const float_ops float_ops_##suffix = {rms_norm_##suffix, rotate_##suffix, attend_##suffix, \
                                          activate_##suffix, add_##suffix,    head_rows_##suffix};

FUNCTIONS(portable, )
#ifdef __x86_64__
FUNCTIONS(avx2, __attribute__((target("avx2"))))
FUNCTIONS(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))))
#endif
