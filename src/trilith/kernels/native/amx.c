/* AMX int8 for prompts: 32 tokens x 32 outputs in four tiles; single tokens go to VNNI.
 *
 * The planes of the weight's tiles are the rows of AMX tiles of 64 inputs. */
#include "trilith.h"

#if defined(__x86_64__) && defined(HAVE_AMX)
#include "avx512.h"

#define FEATURES AVX512_FEATURES ",amx-tile,amx-int8"
#define TARGET __attribute__((target(FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(FEATURES)))

enum { ROWS = 16, TILE_BYTES = 1024, MIN_TOKENS = 9 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t columns_bytes[16];
    uint8_t rows[16];
} tile_config;

/* gcc 12 believes that _tile_loadconfig reads 8 bytes and drops the stores to the rest. */
TARGET static void configure(void) {
    tile_config config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.columns_bytes[tile] = STEP;
        config.rows[tile] = ROWS;
    }
#ifdef EMULATED
    (void)config;
#else
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
#endif
}

/* Sums of one group: tokens of two panels (or one) x outputs of two blocks. */
INLINE void add_steps(
    const int8_t *upper, const int8_t *lower, const uint8_t *left, const uint8_t *right,
    int64_t steps) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t offset = 0; offset < steps * TILE_BYTES; offset += TILE_BYTES) {
        _tile_loadd(4, upper + offset, STEP);
        _tile_loadd(6, left + offset, STEP);
        _tile_loadd(7, right + offset, STEP);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if (lower) {
            _tile_loadd(5, lower + offset, STEP);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
}

/* Scale the sums [32, 2, 16] of one group and add them to the totals. */
INLINE void add_scaled(
    const product *p, int64_t token, int64_t count, int64_t group, const int64_t *block,
    const int32_t *sums, float *total) {
    const float *factor = p->weight.factor + group * p->num_blocks * BLOCK;
    for (int64_t t = 0; t < count; t++) {
        __m512i shift = _mm512_set1_epi32(p->sums[(token + t) * p->weight.num_groups + group]);
        for (int b = 0; b < 2; b++) {
            int64_t at = (t / PANEL * 2 + b) * PANEL * BLOCK + t % PANEL * BLOCK;
            __m512i whole = _mm512_sub_epi32(_mm512_loadu_si512(sums + at), shift);
            __m512 part = _mm512_loadu_ps(factor + block[b] * BLOCK);
            part = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), part);
            _mm512_storeu_ps(total + at, _mm512_add_ps(_mm512_loadu_ps(total + at), part));
        }
    }
}

INLINE void write_out(
    const product *p, int64_t token, int64_t count, const int64_t *block, const float *total) {
    for (int64_t t = 0; t < count; t++) {
        __m512 scale = _mm512_set1_ps(p->scale[token + t]);
        for (int b = 0; b < 2; b++) {
            int64_t at = (t / PANEL * 2 + b) * PANEL * BLOCK + t % PANEL * BLOCK;
            int64_t width = min64(BLOCK, p->weight.num_out - block[b] * BLOCK);
            float *out = p->out + (token + t) * p->weight.num_out + block[b] * BLOCK;
            __mmask16 inside = (__mmask16)(0xffff >> (BLOCK - width));
            _mm512_mask_storeu_ps(out, inside, _mm512_mul_ps(_mm512_loadu_ps(total + at), scale));
        }
    }
}

INLINE void compute(
    const product *p, int64_t token, const int64_t *block, const uint8_t *left,
    const uint8_t *right) {
    float total[4 * PANEL * BLOCK] __attribute__((aligned(64)));
    int32_t sums[4 * PANEL * BLOCK] __attribute__((aligned(64)));
    int64_t count = min64(2 * PANEL, p->num_tokens - token);
    memset(total, 0, sizeof total);
    for (int64_t group = 0; group < p->weight.num_groups; group++) {
        const int8_t *upper = values_of(p, token, group);
        const int8_t *lower = count > PANEL ? values_of(p, token + PANEL, group) : NULL;
        int64_t at = group * p->group_steps * TILE_BYTES;
        add_steps(upper, lower, left + at, right + at, p->group_steps);
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + PANEL * BLOCK, 64);
        if (lower) {
            _tile_stored(2, sums + 2 * PANEL * BLOCK, 64);
            _tile_stored(3, sums + 3 * PANEL * BLOCK, 64);
        }
        add_scaled(p, token, count, group, block, sums, total);
    }
    write_out(p, token, count, block, total);
}

TARGET void linear_amx(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    if (p->num_tokens < MIN_TOKENS) {
        linear_vnni(p, first, last, scratch);
        return;
    }
    int64_t half = unpacked_bytes(p);
    configure();
    for (int64_t at = first; at < last; at += 2) {
        int64_t block[2] = {at, min64(at + 1, last - 1)};
        unpack(p, block[0], scratch);
        unpack(p, block[1], scratch + half);
        for (int64_t token = 0; token < p->num_tokens; token += 2 * PANEL)
            compute(p, token, block, scratch, scratch + half);
    }
    _tile_release();
}
#elif defined(__x86_64__)
void linear_amx(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    linear_vnni(p, first, last, scratch);
}
#endif
