/* What the native kernels share: one product of int8 activations with a weight in tiles.
 *
 * A tile is 16 outputs x 16 or 20 inputs, in planes of four inputs. Byte 4 * o + j of plane p holds
 * output o and input 4 * p + j:
 *   BITS2: codes 0, 1, 2 for -1, 0, +1; four planes, p is bits 2 * p and 2 * p + 1 of 64 bytes;
 *   BASE3: the same codes as digits of base 3; five planes in 64 bytes. A byte is the number whose
 *          highest digit is plane 0, times 256/243 and rounded up: three times the byte is the
 *          next digit times 256, plus a byte that holds the digits after it;
 *   BITS4: codes of `levels` (numerator + offset, from zero up); planes 0 and 1 are the low and
 *          high halves of 64 bytes, planes 2 and 3 those of the next 64.
 * A plane is what one vpdpbusd takes, and a row of an AMX tile: decoding and prefill share it.
 * Tiles are ordered by block of 16 outputs, then group, then inputs; groups are padded to whole
 * tiles with code 0, so that it does not matter which activations meet them.
 */
#ifndef TRILITH_H
#define TRILITH_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 16, QUAD = 4, STEP = 64, PANEL = 16, MAX_THREADS = 64 };
/* Tokens for which all blocks run before the next tokens: their activations stay in the cache. */
enum { SLAB = 64 };
/* BFLOAT16 is no tiles but rows [num_out, num_in], which forward.c multiplies with floats. */
enum layout { BITS2 = 2, BASE3 = 3, BITS4 = 4, BFLOAT16 = 16 };
enum isa { SCALAR, AVX2, VNNI, AMX, NEON, NUM_ISAS };

/* Keep the fields of weight in step with WeightStruct in native_build.py. */
typedef struct {
    const uint8_t *codes;
    const uint8_t *levels; /* [16], at most 32 each */
    const float *factor; /* [num_groups, num_blocks * BLOCK]: scale / denominator */
    int64_t num_out, num_in, num_groups;
    int64_t layout, offset;
} weight;

typedef struct {
    weight weight;
    int64_t num_blocks;  /* of outputs */
    int64_t group_tiles; /* tiles of a group in a block */
    int64_t group_steps; /* steps of 64 activations of a group */
    int64_t num_tokens;
    int64_t panel_rows;  /* tokens that lie together: 1 or PANEL */
    int8_t *values;      /* [panels, num_groups, group_steps, panel_rows, STEP] */
    int32_t *sums;       /* [num_tokens, num_groups]: offset * sum of values */
    float *scale;        /* [num_tokens] */
    float *out;          /* [num_tokens, num_out] */
    uint8_t *scratch;    /* [workers, scratch_bytes] */
    int64_t scratch_bytes;
    int isa;
} product;

/* Compute the outputs of blocks first .. last - 1 for all tokens. */
typedef void kernel(const product *p, int64_t first, int64_t last, uint8_t *scratch);
kernel linear_scalar, linear_avx2, linear_vnni, linear_amx, linear_neon;

/* linear_avx2 for one token of a ternary weight, for a few tokens, and for many with so many bytes
 * of scratch. */
void linear_avx2_one(const product *p, int64_t first, int64_t last);
kernel linear_avx2_few, linear_avx2_many;
int64_t avx2_scratch_bytes(void);

/* linear_vnni for a product of one token, and of many with so many bytes of scratch. */
void linear_vnni_one(const product *p, int64_t first, int64_t last);
kernel linear_vnni_many;
int64_t vnni_scratch_bytes(void);

/* Quantize tokens first .. last - 1 of x [num_tokens, num_in] into values, sums and scale. */
typedef void quantizer(const product *p, const float *x, int64_t first, int64_t last);
quantizer quantize_portable, quantize_avx2, quantize_avx512;

typedef void chunk_task(void *context, int64_t chunk, int worker);
void run_chunks(int threads, int64_t count, chunk_task *task, void *context);

int cpu_has(int isa);
/* Byte permutes, which the first processors with VNNI lack. */
int cpu_has_vbmi(void);

typedef struct {
    int isa;
    int64_t threads;
} settings;

typedef struct {
    uint8_t *memory;
    int64_t bytes;
} workspace;

/* Make room for so many bytes; what was there is lost. Returns 0, or -1 without memory. */
int reserve(workspace *space, int64_t bytes);

/* The activations as they were multiplied, value * scale, for the gradient of the weight. */
typedef struct {
    void *activations; /* [num_tokens, num_in], float or bfloat16 */
    int64_t is_bfloat16;
} quantized;

/* out [num_tokens, num_out] = int8 of x [num_tokens, num_in] * weight; 0, or -1 without memory.
 * `keep` may be NULL. */
int multiply(
    const weight *w, const float *x, float *out, int64_t num_tokens, const settings *how,
    workspace *space, const quantized *keep);

static inline uint16_t bfloat16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Planes of a tile, of four inputs each. */
static inline int planes_of(int64_t layout) { return layout == BASE3 ? 5 : 4; }

static inline int64_t tile_bytes(int64_t layout) { return layout == BITS4 ? 128 : 64; }

static inline int64_t tiles_of_group(const weight *w) {
    return ceil_div(w->num_in / w->num_groups, planes_of(w->layout) * QUAD);
}

static inline const uint8_t *tiles_of(const product *p, int64_t block, int64_t group) {
    int64_t tile = (block * p->weight.num_groups + group) * p->group_tiles;
    return p->weight.codes + tile * tile_bytes(p->weight.layout);
}

/* Bytes of a block whose codes are unpacked: [num_groups, group_steps * STEP / QUAD, STEP]. */
static inline int64_t unpacked_bytes(const product *p) {
    return p->weight.num_groups * p->group_steps * STEP * BLOCK;
}

static inline int8_t *values_of(const product *p, int64_t token, int64_t group) {
    int64_t panel = token / p->panel_rows, row = token % p->panel_rows;
    int64_t step = (panel * p->weight.num_groups + group) * p->group_steps;
    return p->values + (step * p->panel_rows + row) * STEP;
}

/* Tokens of a panel lie STEP bytes apart; the next 64 inputs of a token this many bytes on. */
static inline int64_t step_bytes(const product *p) { return p->panel_rows * STEP; }

/* Four activations of a token: those from input 4 * quad of a group, whose values these are. */
static inline const int8_t *quad_of(const product *p, const int8_t *values, int64_t quad) {
    return values + quad / (STEP / QUAD) * step_bytes(p) + quad % (STEP / QUAD) * QUAD;
}

#endif
