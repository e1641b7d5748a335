/* Products with rows of a head, and single rows of an embedding, read where the file keeps them.
 *
 * Sums of a group run in 16 lanes, which the group's scale then brings together; every body has the
 * same order and gives the same bits. */
#include "rows.h"

#include "decode.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { CHUNK_ROWS = 64, OCTET = 8 };
/* Float products that are worth another thread. */
#define MIN_PRODUCTS_PER_THREAD (1 << 17)
#define INLINE static inline __attribute__((always_inline))

typedef float eight __attribute__((vector_size(32)));
typedef int32_t eight_ints __attribute__((vector_size(32)));
typedef uint32_t eight_words __attribute__((vector_size(32)));

static inline float float_of_half(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu, sign = (uint32_t)(half & 0x8000u) << 16, bits;
    float value;
    if (magnitude < 0x400u) { /* zero and numbers below the normal ones */
        value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t exponent = magnitude >= 0x7c00u ? 0x7f800000u : (magnitude & 0x7c00u) * 0x2000u + 0x38000000u;
    bits = sign | exponent | (magnitude & 0x3ffu) << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int bits_of(const rows *r) { return r->kind == ROWS_INT4 ? 4 : 3; }

static inline const uint8_t *codes_of(const rows *r, int64_t at) {
    return (const uint8_t *)r->values + at * (r->width / OCTET * bits_of(r));
}

static inline const uint16_t *scales_of(const rows *r, int64_t at) {
    return (const uint16_t *)r->scale + at * (r->width / r->group_size);
}

/* Eight codes in the low bits of a word. */
INLINE uint32_t octet_of(const uint8_t *codes, int bits) {
    uint32_t word = 0;
    if (bits == 4)
        memcpy(&word, codes, 4);
    else
        word = codes[0] | (uint32_t)codes[1] << 8 | (uint32_t)codes[2] << 16;
    return word;
}

/* Every second octet goes to the second eight lanes. */
INLINE float dot_body(const rows *r, int bits, int64_t at, const float *x) {
    const uint8_t *codes = codes_of(r, at);
    const uint16_t *scale = scales_of(r, at);
    eight total[2] = {{0}, {0}};
    for (int64_t start = 0; start < r->width; start += r->group_size, scale++) {
        eight sum[2] = {{0}, {0}};
        for (int64_t i = 0; i < r->group_size; i += OCTET, codes += bits) {
            eight_words shifts = {0, 1, 2, 3, 4, 5, 6, 7};
            eight_words word = octet_of(codes, bits) - (eight_words){0};
            eight_ints code = (eight_ints)(word >> (shifts * (uint32_t)bits) & (uint32_t)((1 << bits) - 1));
            eight level = __builtin_convertvector(2 * code - ((1 << bits) - 1), eight), values;
            memcpy(&values, x + start + i, sizeof values);
            sum[i / OCTET % 2] += values * level;
        }
        float factor = float_of_half(*scale);
        total[0] += sum[0] * factor;
        total[1] += sum[1] * factor;
    }
    total[0] += total[1];
    for (int half = OCTET / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) total[0][lane] += total[0][lane + half];
    return total[0][0];
}

INLINE void coded_body(
    const rows *r, const float *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at++)
        out[at] = r->kind == ROWS_INT4 ? dot_body(r, 4, at, x) : dot_body(r, 3, at, x);
}

typedef void coded_rows(const rows *r, const float *x, int64_t first, int64_t last, float *out);

static void coded_portable(
    const rows *r, const float *x, int64_t first, int64_t last, float *out) {
    coded_body(r, x, first, last, out);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void coded_avx2(
    const rows *r, const float *x, int64_t first, int64_t last, float *out) {
    coded_body(r, x, first, last, out);
}

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

/* Both octets at once; a look-up takes the low four bits of a lane, so that no mask is needed. */
TARGET INLINE __m512 levels_of(const uint8_t *codes, int bits, int octets, __m512 table) {
    const __m512i shifts = _mm512_set_epi32(
        7 * bits, 6 * bits, 5 * bits, 4 * bits, 3 * bits, 2 * bits, bits, 0, 7 * bits, 6 * bits,
        5 * bits, 4 * bits, 3 * bits, 2 * bits, bits, 0);
    __m256i low = _mm256_set1_epi32((int)octet_of(codes, bits)), high = low;
    if (octets == 2) high = _mm256_set1_epi32((int)octet_of(codes + bits, bits));
    __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table);
}

TARGET INLINE float dot_avx512(const rows *r, int bits, int64_t at, const float *x) {
    float levels[16];
    for (int c = 0; c < 16; c++) levels[c] = (float)(2 * (c & ((1 << bits) - 1)) - ((1 << bits) - 1));
    const __m512 table = _mm512_loadu_ps(levels);
    const uint8_t *codes = codes_of(r, at);
    const uint16_t *scale = scales_of(r, at);
    __m512 total = _mm512_setzero_ps();
    for (int64_t start = 0; start < r->width; start += r->group_size, scale++) {
        __m512 sum = _mm512_setzero_ps();
        int64_t i = 0;
        for (; i + 2 * OCTET <= r->group_size; i += 2 * OCTET, codes += 2 * bits) {
            __m512 level = levels_of(codes, bits, 2, table);
            sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(x + start + i), level));
        }
        if (i < r->group_size) {
            __m512 level = levels_of(codes, bits, 1, table);
            __m512 values = _mm512_maskz_loadu_ps(0xff, x + start + i);
            sum = _mm512_mask_add_ps(sum, 0xff, sum, _mm512_mul_ps(values, level));
            codes += bits;
        }
        __m512 factor = _mm512_set1_ps(float_of_half(*scale));
        total = _mm512_add_ps(total, _mm512_mul_ps(sum, factor));
    }
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(total), _mm512_extractf32x8_ps(total, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

TARGET static void coded_avx512(
    const rows *r, const float *x, int64_t first, int64_t last, float *out) {
    for (int64_t at = first; at < last; at++)
        out[at] = r->kind == ROWS_INT4 ? dot_avx512(r, 4, at, x) : dot_avx512(r, 3, at, x);
}

static coded_rows *const coded[NUM_ISAS] = {coded_portable, coded_avx2, coded_avx512, coded_avx512};
#else
static coded_rows *const coded[NUM_ISAS] = {coded_portable};
#endif

void restore_row(const rows *r, int64_t at, float *out) {
    const int8_t *bytes = (const int8_t *)r->values + at * r->width;
    const uint16_t *halves = (const uint16_t *)r->values + at * r->width;
    if (r->kind == ROWS_FLOAT32) {
        memcpy(out, (const float *)r->values + at * r->width, (size_t)r->width * sizeof *out);
    } else if (r->kind == ROWS_BF16) {
        for (int64_t i = 0; i < r->width; i++) {
            uint32_t word = (uint32_t)halves[i] << 16;
            memcpy(out + i, &word, sizeof word);
        }
    } else if (r->kind == ROWS_INT8) {
        float scale = ((const float *)r->scale)[at];
        for (int64_t i = 0; i < r->width; i++) out[i] = (float)bytes[i] * scale;
    } else {
        int bits = bits_of(r), largest = (1 << bits) - 1;
        const uint8_t *codes = codes_of(r, at);
        for (int64_t i = 0; i < r->width; i++) {
            uint32_t word = octet_of(codes + i / OCTET * bits, bits) >> (i % OCTET * bits);
            int level = 2 * (int)(word & (uint32_t)largest) - largest;
            out[i] = (float)level * float_of_half(scales_of(r, at)[i / r->group_size]);
        }
    }
}

typedef struct {
    const rows *r;
    const float *x;
    float *out;
    int64_t num_tokens;
    int isa;
} job;

static void product_chunk(void *context, int64_t chunk, int worker) {
    const job *j = context;
    const rows *r = j->r;
    (void)worker;
    int64_t first = chunk * CHUNK_ROWS, last = min64(first + CHUNK_ROWS, r->num_rows);
    for (int64_t t = 0; t < j->num_tokens; t++) {
        const float *x = j->x + t * r->width;
        float *out = j->out + t * r->num_rows;
        if (r->kind >= ROWS_INT4)
            coded[j->isa](r, x, first, last, out);
        else
            float_ops_of(j->isa)->head_rows(r, x, first, last, out);
    }
}

void multiply_rows(
    const rows *r, const float *x, int64_t num_tokens, float *out, const settings *how) {
    job j = {r, x, out, num_tokens, how->isa};
    int64_t useful = 1 + r->num_rows * r->width * num_tokens / MIN_PRODUCTS_PER_THREAD;
    run_chunks(
        (int)min64(how->threads, useful), ceil_div(r->num_rows, CHUNK_ROWS), product_chunk, &j);
}

/* The same for Python. */
void trilith_multiply_rows(
    const rows *r, const float *x, int64_t num_tokens, float *out, int isa, int64_t threads) {
    settings how = {isa, threads};
    multiply_rows(r, x, num_tokens, out, &how);
}
