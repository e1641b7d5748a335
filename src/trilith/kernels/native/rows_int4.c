/* Products with 4-bit rows of a head, in whole numbers: memory should limit them, not conversions.
 *
 * Activations become whole numbers y of 23 bits, as three signed digits of base 256. A row is taken
 * in steps of 128 codes, 64 bytes, whose 16 lanes of four bytes hold eight codes of one group each.
 * The sum of a lane is exact; it then becomes a float times its group's scale and is added to those
 * of the same lane. So every body gives the same bits. */
#include "rows.h"

#include <math.h>

#ifdef __x86_64__
#include <immintrin.h>

#include "avx512.h"
#endif

enum { LANES = 16, LANE_BYTES = 4, STEP_BYTES = LANES * LANE_BYTES, DIGITS = 3, ROWS_AT_ONCE = 4 };
/* Level 2 c - 15 times an activation is c times y, twice the activation, less 15 / 2 of it. */
enum { LARGEST = (127 * 65536 + 127 * 256 + 127) / 2 };

typedef struct {
    int32_t y[2][STEP_BYTES];             /* for even codes, then for odd ones */
    int8_t digits[DIGITS][2][STEP_BYTES]; /* of y, the highest first */
    int32_t less[LANES];                  /* -15 / 2 of the sum of y */
    uint16_t group[LANES];                /* of a lane, counted from first_group */
    int64_t first_group;
    int32_t num_bytes, num_groups;
} step;

struct whole_row {
    float scale;
    int64_t num_steps;
    step steps[];
};

static int64_t steps_of(const rows *r) { return ceil_div(r->width, 2 * STEP_BYTES); }

static const uint16_t *scales_of(const rows *r, int64_t at) {
    return (const uint16_t *)r->scale + at * (r->width / r->group_size);
}

static const uint8_t *codes_of(const rows *r, int64_t at) {
    return (const uint8_t *)r->values + at * (r->width / 2);
}

/* NaN if one of them is not finite. */
static float largest_of(const float *x, int64_t width) {
    float largest = 0;
    int is_finite = 1;
    for (int64_t i = 0; i < width; i++) {
        is_finite &= isfinite(x[i]) != 0;
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    }
    return is_finite ? largest : NAN;
}

static void put_code_factor(step *s, int64_t code, int32_t activation) {
    int64_t at = code / 2;
    int32_t rest = s->y[code % 2][at] = 2 * activation;
    for (int d = DIGITS - 1; d >= 0; d--) {
        int8_t digit = (int8_t)(uint8_t)(rest & 255);
        s->digits[d][code % 2][at] = digit;
        rest = (rest - digit) / 256;
    }
    s->less[at / LANE_BYTES] -= 15 * activation;
}

static void fill_step(const rows *r, const float *x, int64_t first, double per_scale, step *s) {
    int64_t count = min64(2 * STEP_BYTES, r->width - first);
    s->num_bytes = (int32_t)(count / 2);
    s->first_group = first / r->group_size;
    s->num_groups = (int32_t)((first + count - 1) / r->group_size - s->first_group + 1);
    for (int64_t i = 0; i < count; i++) {
        s->group[i / (2 * LANE_BYTES)] = (uint16_t)((first + i) / r->group_size - s->first_group);
        if (per_scale > 0) put_code_factor(s, i, (int32_t)rint(x[first + i] * per_scale));
    }
}

int64_t whole_row_bytes(const rows *r) {
    return (int64_t)sizeof(whole_row) + steps_of(r) * (int64_t)sizeof(step);
}

void make_whole(const rows *r, const float *x, whole_row *row) {
    memset(row, 0, (size_t)whole_row_bytes(r));
    double largest = largest_of(x, r->width);
    row->scale = (float)(largest / LARGEST);
    row->num_steps = steps_of(r);
    for (int64_t n = 0; n < row->num_steps; n++)
        fill_step(r, x, n * 2 * STEP_BYTES, LARGEST / largest, row->steps + n);
}

/* The lanes one after another, halves first. */
static float sum_of(float *total) {
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) total[lane] += total[lane + half];
    return total[0];
}

static void dots_portable(
    const rows *r, const whole_row *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at++) {
        const uint8_t *codes = codes_of(r, at);
        float total[LANES] = {0};
        for (int64_t n = 0; n < x->num_steps; n++, codes += STEP_BYTES) {
            const step *s = x->steps + n;
            const uint16_t *scale = scales_of(r, at) + s->first_group;
            for (int lane = 0; lane < s->num_bytes / LANE_BYTES; lane++) {
                int32_t sum = s->less[lane];
                for (int i = lane * LANE_BYTES; i < (lane + 1) * LANE_BYTES; i++)
                    sum += (codes[i] & 15) * s->y[0][i] + (codes[i] >> 4) * s->y[1][i];
                total[lane] += (float)sum * float_of_half(scale[s->group[lane]]);
            }
        }
        out[at] = sum_of(total) * x->scale;
    }
}

typedef void dots(const rows *r, const whole_row *x, int64_t first, int64_t last, float *out);

#ifdef __x86_64__
#define TARGET_AVX2 __attribute__((target("avx2,f16c")))

/* Sums of the lanes of a digit: [8] from 32 bytes. */
TARGET_AVX2 static inline __m256i digit_sums(__m256i even, __m256i odd, const step *s, int d, int half) {
    const __m256i *factors = (const __m256i *)s->digits[d];
    __m256i pairs = _mm256_maddubs_epi16(even, _mm256_loadu_si256(factors + half));
    __m256i more = _mm256_maddubs_epi16(odd, _mm256_loadu_si256(factors + 2 + half));
    return _mm256_madd_epi16(_mm256_add_epi16(pairs, more), _mm256_set1_epi16(1));
}

TARGET_AVX2 static void dots_avx2(
    const rows *r, const whole_row *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at++) {
        float total[LANES] = {0};
        for (int64_t n = 0; n < x->num_steps; n++) {
            const step *s = x->steps + n;
            const uint16_t *scale = scales_of(r, at) + s->first_group;
            uint8_t codes[STEP_BYTES] = {0};
            float factor[LANES];
            memcpy(codes, codes_of(r, at) + n * STEP_BYTES, (size_t)s->num_bytes);
            for (int lane = 0; lane < LANES; lane++) factor[lane] = _cvtsh_ss(scale[s->group[lane]]);
            for (int half = 0; half < 2; half++) {
                __m256i both = _mm256_loadu_si256((const __m256i *)codes + half);
                __m256i even = _mm256_and_si256(both, _mm256_set1_epi8(15));
                __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
                __m256i sum = _mm256_loadu_si256((const __m256i *)s->less + half);
                for (int d = 0; d < DIGITS; d++)
                    sum = _mm256_add_epi32(
                        sum,
                        _mm256_slli_epi32(digit_sums(even, odd, s, d, half), 8 * (DIGITS - 1 - d)));
                __m256 scaled = _mm256_mul_ps(
                    _mm256_cvtepi32_ps(sum), _mm256_loadu_ps(factor + LANES / 2 * half));
                float *into = total + LANES / 2 * half;
                _mm256_storeu_ps(into, _mm256_add_ps(_mm256_loadu_ps(into), scaled));
            }
        }
        out[at] = sum_of(total) * x->scale;
    }
}

#define TARGET_VNNI __attribute__((target(AVX512_FEATURES)))

/* What a step adds to a row. */
TARGET_VNNI static inline __m512 scaled_sums(
    const uint8_t *codes, const uint16_t *scale, const step *s) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __mmask64 own = ~0ull >> (STEP_BYTES - s->num_bytes);
    __m512i both = _mm512_maskz_loadu_epi8(own, codes);
    __m512i even = _mm512_and_si512(both, nibble);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    __m512i sums[DIGITS] = {
        _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_loadu_si512(s->less)};
    for (int d = 0; d < DIGITS; d++) {
        sums[d] = dot(sums[d], even, _mm512_loadu_si512(s->digits[d][0]));
        sums[d] = dot(sums[d], odd, _mm512_loadu_si512(s->digits[d][1]));
    }
    __m512i sum = _mm512_add_epi32(
        _mm512_slli_epi32(sums[0], 16), _mm512_add_epi32(_mm512_slli_epi32(sums[1], 8), sums[2]));
    __m256i halves;
    if (s->num_groups == 1)
        halves = _mm256_set1_epi16((int16_t)*scale);
    else
        halves = _mm256_permutexvar_epi16(
            _mm256_loadu_si256((const __m256i *)s->group),
            _mm256_maskz_loadu_epi16((__mmask16)((1u << s->num_groups) - 1), scale));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_cvtph_ps(halves));
}

TARGET_VNNI static inline float sum_of_vector(__m512 total) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(total), _mm512_extractf32x8_ps(total, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* Four rows at once, so that their sums do not wait for each other; the last may come again. */
TARGET_VNNI static void dots_vnni(
    const rows *r, const whole_row *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at += ROWS_AT_ONCE) {
        const uint8_t *codes[ROWS_AT_ONCE];
        const uint16_t *scale[ROWS_AT_ONCE];
        __m512 total[ROWS_AT_ONCE];
        for (int n = 0; n < ROWS_AT_ONCE; n++) {
            codes[n] = codes_of(r, min64(at + n, last - 1));
            scale[n] = scales_of(r, min64(at + n, last - 1));
            total[n] = _mm512_setzero_ps();
        }
        for (const step *s = x->steps; s < x->steps + x->num_steps; s++)
#pragma GCC unroll 4
            for (int n = 0; n < ROWS_AT_ONCE; n++) {
                __m512 scaled = scaled_sums(codes[n], scale[n] + s->first_group, s);
                total[n] = _mm512_add_ps(total[n], scaled);
                codes[n] += STEP_BYTES;
            }
        for (int n = 0; n < min64(ROWS_AT_ONCE, last - at); n++)
            out[at + n] = sum_of_vector(total[n]) * x->scale;
    }
}

static dots *const bodies[NUM_ISAS] = {dots_portable, dots_avx2, dots_vnni, dots_vnni};
#else
static dots *const bodies[NUM_ISAS] = {[SCALAR] = dots_portable, [NEON] = dots_portable};
#endif

void int4_rows(
    const rows *r, const whole_row *x, int64_t first, int64_t last, float *out, int isa) {
    bodies[isa](r, x, first, last, out);
}
