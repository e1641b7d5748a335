/* Products with rows of a head, and single rows of an embedding, read where the file keeps them.
 *
 * Sums of a group run in 16 lanes, which the group's scale then brings together; every body has the
 * same order and gives the same bits. */
#include "rows.h"

#include "forward.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

/* The codes that are multiplied here have three bits; those of four have rows_int4.c. */
enum { CHUNK_ROWS = 64, OCTET = 8, ROWS_AT_ONCE = 4, BITS = 3, LARGEST_CODE = 7 };
/* Float products that are worth another thread. */
#define MIN_PRODUCTS_PER_THREAD (1 << 17)
#define INLINE static inline __attribute__((always_inline))

typedef float eight __attribute__((vector_size(32)));
typedef int32_t eight_ints __attribute__((vector_size(32)));
typedef uint32_t eight_words __attribute__((vector_size(32)));

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
INLINE float dot_body(const rows *r, int64_t at, const float *x) {
    const uint8_t *codes = codes_of(r, at);
    const uint16_t *scale = scales_of(r, at);
    eight total[2] = {{0}, {0}};
    for (int64_t start = 0; start < r->width; start += r->group_size, scale++) {
        eight sum[2] = {{0}, {0}};
        for (int64_t i = 0; i < r->group_size; i += OCTET, codes += BITS) {
            eight_words shifts = {0, 1, 2, 3, 4, 5, 6, 7};
            eight_words word = octet_of(codes, BITS) - (eight_words){0};
            eight_ints code = (eight_ints)(word >> (shifts * BITS) & LARGEST_CODE);
            eight level = __builtin_convertvector(2 * code - LARGEST_CODE, eight), values;
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
    for (int64_t at = first; at < last; at++) out[at] = dot_body(r, at, x);
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

/* Two octets in the halves of a word, or one. */
INLINE uint64_t sixteen_of(const uint8_t *codes, int octets) {
    uint32_t low;
    uint16_t high;
    if (octets == 1) return octet_of(codes, BITS);
    memcpy(&low, codes, sizeof low);
    memcpy(&high, codes + sizeof low, sizeof high);
    return (low & 0xffffffu) | (uint64_t)((uint32_t)high << 8 | low >> 24) << 32;
}

TARGET INLINE float sum_of(__m512 total) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(total), _mm512_extractf32x8_ps(total, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* Dot products of `count` rows, whose sums do not wait for each other. A word of sixteen codes goes
 * to all pairs of lanes, which then hold codes c and c + 8 in their low bits: a look-up takes the
 * low four bits of a lane, so that no mask is needed. Activations are brought into that order, and
 * the sums back from it. */
TARGET INLINE void dots_avx512(
    const rows *r, int64_t at, int count, const float *x, float *out) {
    const __m512i paired = _mm512_set_epi32(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i apart = _mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i shifts = _mm512_set_epi64(
        7 * BITS, 6 * BITS, 5 * BITS, 4 * BITS, 3 * BITS, 2 * BITS, BITS, 0);
    float levels[16];
    for (int c = 0; c < 16; c++) levels[c] = (float)(2 * (c & LARGEST_CODE) - LARGEST_CODE);
    const __m512 table = _mm512_loadu_ps(levels);
    int64_t row_bytes = r->width / OCTET * BITS, num_groups = r->width / r->group_size;
    const uint8_t *codes = codes_of(r, at);
    const uint16_t *scale = scales_of(r, at);
    __m512 total[ROWS_AT_ONCE];
    for (int n = 0; n < count; n++) total[n] = _mm512_setzero_ps();
    for (int64_t group = 0; group < num_groups; group++, x += r->group_size) {
        __m512 sum[ROWS_AT_ONCE];
        for (int n = 0; n < count; n++) sum[n] = _mm512_setzero_ps();
        for (int64_t i = 0; i < r->group_size; i += 2 * OCTET) {
            int octets = i + OCTET < r->group_size ? 2 : 1;
            __m512 values = _mm512_maskz_loadu_ps(octets == 2 ? 0xffff : 0xff, x + i);
            values = _mm512_permutexvar_ps(paired, values);
            for (int n = 0; n < count; n++) {
                uint64_t word = sixteen_of(codes + n * row_bytes, octets);
                __m512i each = _mm512_srlv_epi64(_mm512_set1_epi64((int64_t)word), shifts);
                __m512 level = _mm512_permutexvar_ps(each, table);
                sum[n] = _mm512_add_ps(sum[n], _mm512_mul_ps(values, level));
            }
            codes += octets * BITS;
        }
        for (int n = 0; n < count; n++) {
            int16_t half = (int16_t)scale[n * num_groups + group];
            __m512 factor = _mm512_cvtph_ps(_mm256_set1_epi16(half));
            total[n] = _mm512_add_ps(total[n], _mm512_mul_ps(sum[n], factor));
        }
    }
    for (int n = 0; n < count; n++) out[n] = sum_of(_mm512_permutexvar_ps(apart, total[n]));
}

TARGET static void coded_avx512(
    const rows *r, const float *x, int64_t first, int64_t last, float *out) {
    int64_t at = first;
    for (; at + ROWS_AT_ONCE <= last; at += ROWS_AT_ONCE)
        dots_avx512(r, at, ROWS_AT_ONCE, x, out + at);
    for (; at < last; at++) dots_avx512(r, at, 1, x, out + at);
}

static coded_rows *const coded[NUM_ISAS] = {coded_portable, coded_avx2, coded_avx512, coded_avx512};
#else
static coded_rows *const coded[NUM_ISAS] = {[SCALAR] = coded_portable, [NEON] = coded_portable};
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
    uint8_t *whole; /* activations of each token in whole numbers, for rows of 4 and 8 bits */
    int64_t whole_bytes;
    float *out;
    int64_t num_tokens;
    int isa;
} job;

/* Rows first .. last - 1 of one token. */
static void token_rows(const job *j, int64_t token, int64_t first, int64_t last) {
    const rows *r = j->r;
    const float *x = j->x + token * r->width;
    const void *whole = j->whole + token * j->whole_bytes;
    float *out = j->out + token * r->num_rows;
    if (r->kind == ROWS_INT8)
        int8_rows(r, whole, first, last, out, j->isa);
    else if (r->kind == ROWS_INT4)
        int4_rows(r, whole, first, last, out, j->isa);
    else if (r->kind == ROWS_INT3)
        coded[j->isa](r, x, first, last, out);
    else
        float_ops_of(j->isa)->head_rows(r, x, first, last, out);
}

static void product_chunk(void *context, int64_t chunk, int worker) {
    const job *j = context;
    (void)worker;
    int64_t first = chunk * CHUNK_ROWS, last = min64(first + CHUNK_ROWS, j->r->num_rows);
    for (int64_t token = 0; token < j->num_tokens; token++) token_rows(j, token, first, last);
}

/* Bring the activations of all tokens into whole numbers, where rows want that; -1 without memory. */
static int make_all_whole(job *j) {
    const rows *r = j->r;
    if (r->kind != ROWS_INT4 && r->kind != ROWS_INT8) return 0;
    int64_t bytes = r->kind == ROWS_INT4 ? whole_row_bytes(r) : short_row_bytes(r);
    j->whole_bytes = ceil_div(bytes, 64) * 64;
    j->whole = aligned_alloc(64, (size_t)(j->num_tokens * j->whole_bytes));
    if (!j->whole) return -1;
    for (int64_t token = 0; token < j->num_tokens; token++) {
        void *whole = j->whole + token * j->whole_bytes;
        if (r->kind == ROWS_INT4)
            make_whole(r, j->x + token * r->width, whole);
        else
            make_short(r, j->x + token * r->width, whole);
    }
    return 0;
}

int multiply_rows(
    const rows *r, const float *x, int64_t num_tokens, float *out, const settings *how) {
    if (num_tokens == 0) return 0;
    job j = {.r = r, .x = x, .out = out, .num_tokens = num_tokens, .isa = how->isa};
    if (make_all_whole(&j)) return -1;
    int64_t useful = 1 + r->num_rows * r->width * num_tokens / MIN_PRODUCTS_PER_THREAD;
    run_chunks(
        (int)min64(how->threads, useful), ceil_div(r->num_rows, CHUNK_ROWS), product_chunk, &j);
    free(j.whole);
    return 0;
}

/* The same for Python. */
int trilith_multiply_rows(
    const rows *r, const float *x, int64_t num_tokens, float *out, int isa, int64_t threads) {
    settings how = {isa, threads};
    return multiply_rows(r, x, num_tokens, out, &how);
}
