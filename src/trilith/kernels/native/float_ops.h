/* The float parts of a decoding step: one body in generic vectors, included per instruction set.
 *
 * Who includes it defines FLOAT_OPS, the name of the table; TARGET, the attribute of its functions;
 * and FROM_BF16(p), which loads LANES values from p as floats. All give the same bits. */
#include "forward.h"

#include <math.h>

enum { LANES = 8 };
typedef float floats __attribute__((vector_size(4 * LANES)));

#define INLINE TARGET static inline __attribute__((always_inline))

/* Macros, since functions that take such vectors have another ABI per instruction set. */
#define LOAD(from) \
    ({ \
        floats loaded_; \
        memcpy(&loaded_, from, sizeof loaded_); \
        loaded_; \
    })

#define SUM(vector, into) \
    do { \
        floats summed_ = vector; \
        for (int half_ = LANES / 2; half_; half_ /= 2) \
            for (int lane_ = 0; lane_ < half_; lane_++) summed_[lane_] += summed_[lane_ + half_]; \
        into = summed_[0]; \
    } while (0)

/* Sums of the lanes of eight vectors, in the order of SUM; `vectors` are used up. */
#ifdef __clang__
#define PAIRED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t lanes_of __attribute__((vector_size(4 * LANES)));
#define PAIRED(a, b, ...) __builtin_shuffle(a, b, (lanes_of){__VA_ARGS__})
#endif
#define SUM_EIGHT(v, into) \
    do { \
        for (int i_ = 0; i_ < 8; i_ += 2) \
            v[i_ / 2] = PAIRED(v[i_], v[i_ + 1], 0, 1, 2, 3, 8, 9, 10, 11) + \
                        PAIRED(v[i_], v[i_ + 1], 4, 5, 6, 7, 12, 13, 14, 15); \
        for (int i_ = 0; i_ < 4; i_ += 2) \
            v[i_ / 2] = PAIRED(v[i_], v[i_ + 1], 0, 1, 8, 9, 4, 5, 12, 13) + \
                        PAIRED(v[i_], v[i_ + 1], 2, 3, 10, 11, 6, 7, 14, 15); \
        v[0] = PAIRED(v[0], v[1], 0, 2, 8, 10, 4, 6, 12, 14) + \
               PAIRED(v[0], v[1], 1, 3, 9, 11, 5, 7, 13, 15); \
        v[0] = PAIRED(v[0], v[0], 0, 4, 1, 5, 2, 6, 3, 7); \
        memcpy(into, v, sizeof v[0]); \
    } while (0)

/* Products of float x with whole vectors of a row, in LANES sums; `done` is where they end. */
#define DOT_LANES(x, row, count, load, lanes, done) \
    do { \
        floats a_ = {0}, b_ = {0}, c_ = {0}, d_ = {0}; \
        for (done = 0; done + 4 * LANES <= count; done += 4 * LANES) { \
            a_ += LOAD(x + done) * load(row + done); \
            b_ += LOAD(x + done + LANES) * load(row + done + LANES); \
            c_ += LOAD(x + done + 2 * LANES) * load(row + done + 2 * LANES); \
            d_ += LOAD(x + done + 3 * LANES) * load(row + done + 3 * LANES); \
        } \
        for (; done + LANES <= count; done += LANES) a_ += LOAD(x + done) * load(row + done); \
        lanes = (a_ + b_) + (c_ + d_); \
    } while (0)

/* Dot product of float x with a row; `load` makes floats of LANES of its numbers, `one` of one. */
#define DOT(x, row, count, load, one, into) \
    do { \
        floats lanes_; \
        int64_t i_; \
        DOT_LANES(x, row, count, load, lanes_, i_); \
        SUM(lanes_, into); \
        for (; i_ < count; i_++) into += x[i_] * one(row[i_]); \
    } while (0)

INLINE float bf16_to_float(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* exp within 2 ulp, in a form that compilers vectorize (Cephes expf). */
INLINE float exponential(float x) {
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

TARGET static void rms_norm(const float *x, const float *norm, int64_t width, float eps, float *out) {
    float squares;
    DOT(x, x, width, LOAD, , squares);
    float inv_rms = 1.0f / sqrtf(squares / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * inv_rms * norm[i];
}

TARGET static void rotate(float *x, const float *cos, const float *sin, int64_t width) {
    float *second = x + width / 2;
    for (int64_t i = 0; i < width / 2; i++) {
        float left = x[i], right = second[i];
        x[i] = left * cos[i] - right * sin[i];
        second[i] = right * cos[i + width / 2] + left * sin[i + width / 2];
    }
}

INLINE void activate_kind(int64_t kind, const float *hidden, int64_t width, float *out) {
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

TARGET static void add(float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

TARGET static void head_rows(const rows *r, const float *x, int64_t first, int64_t last, float *out) {
    int64_t width = r->width;
    for (int64_t at = first; at < last; at++) {
        if (r->kind == ROWS_BF16) {
            const uint16_t *row = (const uint16_t *)r->values + at * width;
            DOT(x, row, width, FROM_BF16, bf16_to_float, out[at]);
        } else {
            const float *row = (const float *)r->values + at * width;
            DOT(x, row, width, LOAD, , out[at]);
        }
    }
}

TARGET static void activate(int64_t kind, const float *hidden, int64_t width, float *out) {
    if (kind == SWIGLU)
        activate_kind(SWIGLU, hidden, width, out);
    else if (kind == GATED_RELU2)
        activate_kind(GATED_RELU2, hidden, width, out);
    else
        activate_kind(RELU2, hidden, width, out);
}

const float_ops FLOAT_OPS = {rms_norm, rotate, activate, add, head_rows};
