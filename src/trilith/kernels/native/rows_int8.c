/* Products with 8-bit rows of a head, in whole numbers: memory should limit them, not conversions.
 *
 * Activations are rounded to 16 bits of the token's largest one, so that a product of pairs is one
 * instruction: logits move by about 3e-5 of the largest one. Sums are exact, so that every body
 * gives the same bits. */
#include "rows.h"

#include <math.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

/* 2 * PART / 16 products of 128 * 32767 fit a lane of 32 bits. */
enum { LARGEST = 32767, PART = 4096, PREFETCH_BYTES = 8192 };

struct short_row {
    float scale;
    int16_t values[];
};

int64_t short_row_bytes(const rows *r) {
    return (int64_t)sizeof(short_row) + r->width * (int64_t)sizeof(int16_t);
}

void make_short(const rows *r, const float *x, short_row *row) {
    float largest = 0;
    int is_finite = 1;
    for (int64_t i = 0; i < r->width; i++) {
        is_finite &= isfinite(x[i]) != 0;
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    }
    float inv_scale = largest > 0 ? LARGEST / largest : 0;
    /* The smallest floats have no reciprocal; beside them all is zero. */
    if (!is_finite || !isfinite(inv_scale)) inv_scale = 0;
    for (int64_t i = 0; i < r->width; i++)
        row->values[i] = (int16_t)rintf(is_finite ? x[i] * inv_scale : 0);
    row->scale = is_finite ? largest / LARGEST : NAN;
}

static const int8_t *row_of(const rows *r, int64_t at) {
    return (const int8_t *)r->values + at * r->width;
}

static float scaled(const rows *r, const short_row *x, int64_t at, int64_t sum) {
    return (float)sum * x->scale * ((const float *)r->scale)[at];
}

static int64_t dot_from(const int8_t *row, const int16_t *x, int64_t first, int64_t width) {
    int64_t sum = 0;
    for (int64_t i = first; i < width; i++) sum += row[i] * x[i];
    return sum;
}

static void dots_portable(
    const rows *r, const short_row *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at++)
        out[at] = scaled(r, x, at, dot_from(row_of(r, at), x->values, 0, r->width));
}

typedef void dots(const rows *r, const short_row *x, int64_t first, int64_t last, float *out);

#ifdef __x86_64__
#define TARGET __attribute__((target("avx2")))

TARGET static inline __m256i add_sixteen(__m256i sum, const int8_t *row, const int16_t *x) {
    __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)row));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(codes, _mm256_loadu_si256((const __m256i *)x)));
}

TARGET static void dots_avx2(
    const rows *r, const short_row *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at++) {
        const int8_t *row = row_of(r, at);
        int64_t total = 0, i = 0;
        while (i + 16 <= r->width) {
            __m256i even = _mm256_setzero_si256(), odd = even;
            int64_t stop = min64(i + PART, r->width);
            for (; i + 32 <= stop; i += 32) {
                _mm_prefetch((const char *)(row + i + PREFETCH_BYTES), _MM_HINT_T0);
                even = add_sixteen(even, row + i, x->values + i);
                odd = add_sixteen(odd, row + i + 16, x->values + i + 16);
            }
            for (; i + 16 <= stop; i += 16) even = add_sixteen(even, row + i, x->values + i);
            int32_t lanes[2][8];
            _mm256_storeu_si256((__m256i *)lanes[0], even);
            _mm256_storeu_si256((__m256i *)lanes[1], odd);
            for (int lane = 0; lane < 8; lane++) total += (int64_t)lanes[0][lane] + lanes[1][lane];
        }
        out[at] = scaled(r, x, at, total + dot_from(row, x->values, i, r->width));
    }
}

static dots *const bodies[NUM_ISAS] = {dots_portable, dots_avx2, dots_avx2, dots_avx2};
#else
static dots *const bodies[NUM_ISAS] = {[SCALAR] = dots_portable, [NEON] = dots_portable};
#endif

void int8_rows(
    const rows *r, const short_row *x, int64_t first, int64_t last, float *out, int isa) {
    bodies[isa](r, x, first, last, out);
}
