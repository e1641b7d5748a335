/* A ternary weight for one optimizer step: refined scales, levels and dequantized values.
 *
 * The levels are those of quant.nearest_codes, ties included; sums of a refined scale are taken in
 * 16 lanes, in another order than torch's. */
#include "trilith.h"

#define MIN_SCALE 1e-8f
enum { LANES = 16, ROWS_A_CHUNK = 16 };

typedef struct {
    const float *latent; /* [num_rows, num_in] */
    float *scale;        /* [num_rows or 1, num_groups] */
    int8_t *numerators;  /* [num_rows, num_in]: -1, 0, 1 */
    void *quantized;     /* [num_rows, num_in], float or bfloat16 */
    int64_t is_bfloat16;
    int64_t num_rows, num_in, num_groups;
    int64_t scale_rows; /* num_rows, or 1 if all rows share their scales */
} step_weight;

static inline float level_of(float ratio) {
    return (float)(ratio > 0.5f) - (float)(ratio < -0.5f);
}

/* One alternation of the least-squares fit, as quant.refine_scale. */
static inline __attribute__((always_inline)) float refined(
    const float *latent, float scale, int64_t count) {
    float product[LANES] = {0}, energy[LANES] = {0};
    int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            float level = level_of(latent[i + lane] / scale);
            product[lane] += latent[i + lane] * level;
            energy[lane] += level * level;
        }
    for (int64_t i = whole; i < count; i++) {
        float level = level_of(latent[i] / scale);
        product[i - whole] += latent[i] * level;
        energy[i - whole] += level * level;
    }
    float all_products = 0, all_energy = 0;
    for (int lane = 0; lane < LANES; lane++) {
        all_products += product[lane];
        all_energy += energy[lane];
    }
    float fitted = all_energy > 0 ? all_products / all_energy : scale;
    return fitted < MIN_SCALE ? MIN_SCALE : fitted;
}

static inline __attribute__((always_inline)) void refine_body(
    const step_weight *s, int64_t first, int64_t last) {
    int64_t group_in = s->num_in / s->num_groups;
    for (int64_t block = first * s->num_groups; block < last * s->num_groups; block++)
        s->scale[block] = refined(s->latent + block * group_in, s->scale[block], group_in);
}

static inline __attribute__((always_inline)) void quantize_group(
    const step_weight *s, int64_t at, int64_t count, float scale, int is_bfloat16) {
    const float *restrict latent = s->latent + at;
    int8_t *restrict numerators = s->numerators + at;
    float *restrict floats = (float *)s->quantized + at;
    uint16_t *restrict bfloats = (uint16_t *)s->quantized + at;
    for (int64_t i = 0; i < count; i++) {
        float level = level_of(latent[i] / scale);
        numerators[i] = (int8_t)(int32_t)level;
        if (is_bfloat16)
            bfloats[i] = bfloat16_of(level * scale);
        else
            floats[i] = level * scale;
    }
}

static inline __attribute__((always_inline)) void quantize_rows_body(
    const step_weight *s, int64_t first, int64_t last) {
    int64_t group_in = s->num_in / s->num_groups;
    for (int64_t row = first; row < last; row++)
        for (int64_t group = 0; group < s->num_groups; group++) {
            int64_t at = row * s->num_in + group * group_in;
            float scale = s->scale[(s->scale_rows == 1 ? 0 : row) * s->num_groups + group];
            /* One loop a type, so that both are vectorized. */
            if (s->is_bfloat16)
                quantize_group(s, at, group_in, scale, 1);
            else
                quantize_group(s, at, group_in, scale, 0);
        }
}

#define CHUNK_FUNCTIONS(name, target_attribute)                                            \
    target_attribute static void refine_##name(void *context, int64_t chunk, int worker) { \
        const step_weight *s = context;                                                    \
        (void)worker;                                                                      \
        int64_t first = chunk * ROWS_A_CHUNK;                                              \
        refine_body(s, first, min64(first + ROWS_A_CHUNK, s->num_rows));                   \
    }                                                                                      \
    target_attribute static void rows_##name(void *context, int64_t chunk, int worker) {   \
        const step_weight *s = context;                                                    \
        (void)worker;                                                                      \
        int64_t first = chunk * ROWS_A_CHUNK;                                              \
        quantize_rows_body(s, first, min64(first + ROWS_A_CHUNK, s->num_rows));            \
    }

CHUNK_FUNCTIONS(portable, )
#ifdef __x86_64__
CHUNK_FUNCTIONS(avx2, __attribute__((target("avx2"))))
CHUNK_FUNCTIONS(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))))
static chunk_task *const refiners[NUM_ISAS] = {
    refine_portable, refine_avx2, refine_avx512, refine_avx512};
static chunk_task *const row_quantizers[NUM_ISAS] = {
    rows_portable, rows_avx2, rows_avx512, rows_avx512};
#else
static chunk_task *const refiners[NUM_ISAS] = {
    [SCALAR] = refine_portable, [NEON] = refine_portable};
static chunk_task *const row_quantizers[NUM_ISAS] = {
    [SCALAR] = rows_portable, [NEON] = rows_portable};
#endif

/* Refine the scales in place; each row has its own. */
void trilith_refine(const step_weight *s, int isa, int64_t threads) {
    run_chunks((int)threads, ceil_div(s->num_rows, ROWS_A_CHUNK), refiners[isa], (void *)s);
}

/* Write numerators and quantized values for the scales. */
void trilith_step_weight(const step_weight *s, int isa, int64_t threads) {
    run_chunks((int)threads, ceil_div(s->num_rows, ROWS_A_CHUNK), row_quantizers[isa], (void *)s);
}
