/* AVX2 for prompts: the codes of a block are unpacked a chunk of a group at a time.
 *
 * A chunk stays in the nearest cache while a slab of tokens passes, four at once: their sums of 16
 * bits, the codes and the activations just fill the registers. What a group has added up so far, and
 * the groups before it, wait in the worker's scratch. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx2.h"

#define TARGET AVX2_TARGET
#define INLINE AVX2_INLINE
/* Unrolled, sums stay in registers; a loop would keep them in memory. */
#define UNROLLED _Pragma("GCC unroll 8")
#define FOR_SUMS UNROLLED for (int t = 0; t < tokens; t++) UNROLLED for (int h = 0; h < 2; h++)

/* A row is four inputs of a block. Rows of a chunk are 12 KB: planes of both kinds fill it. */
enum { CHUNK_ROWS = 192, SLAB_TOKENS = 64, TOKENS = 4 };
enum { STEP_ROWS = STEP / QUAD, PANEL_BYTES = PANEL * STEP };

typedef struct {
    const product *p;
    int64_t block, group;
    int64_t first_row, num_rows, group_rows; /* of the chunk, and of the whole group */
    int64_t first_token;                     /* of the slab */
    uint8_t *rows;  /* [CHUNK_ROWS, STEP] */
    int32_t *sums;  /* [SLAB_TOKENS, BLOCK]: of a group that goes on in the next chunk */
    float *totals;  /* [SLAB_TOKENS, BLOCK]: of the groups before */
} chunk;

int64_t avx2_scratch_bytes(void) {
    return CHUNK_ROWS * STEP + SLAB_TOKENS * BLOCK * (int64_t)(sizeof(int32_t) + sizeof(float));
}

INLINE void unpack_chunk(const chunk *c, int layout) {
    int planes = planes_of(layout);
    const __m256i levels = levels_of(c->p);
    const uint8_t *tile = tiles_of(c->p, c->block, c->group);
    tile += c->first_row / planes * tile_bytes(layout);
    __m256i *row = (__m256i *)c->rows;
    for (int64_t done = 0; done < c->num_rows; done += planes, tile += tile_bytes(layout)) {
        __m256i left[2] = {levels, levels};
        UNROLLED for (int plane = 0; plane < planes; plane++, row += 2)
            UNROLLED for (int h = 0; h < 2; h++)
                _mm256_storeu_si256(row + h, half_plane(tile, levels, layout, plane, h, left + h));
    }
}

INLINE void add_rows(
    const uint8_t *row, int64_t num_rows, const int8_t *x, int tokens, __m256i (*narrow)[2]) {
    for (int64_t i = 0; i < num_rows; i++, row += STEP, x += QUAD) {
        __m256i low = _mm256_loadu_si256((const __m256i *)row);
        __m256i high = _mm256_loadu_si256((const __m256i *)row + 1);
        UNROLLED for (int t = 0; t < tokens; t++) {
            __m256i four = broadcast(x + t * STEP);
            narrow[t][0] = add_products(narrow[t][0], low, four);
            narrow[t][1] = add_products(narrow[t][1], high, four);
        }
    }
}

/* Scale the sums of a whole group and add them to the totals, which after the last are written. */
INLINE void end_group(const chunk *c, int64_t token, int tokens, __m256i (*sums)[2]) {
    float *kept = c->totals + (token - c->first_token) * BLOCK;
    __m256 totals[TOKENS][2];
    FOR_SUMS {
        __m256 before = c->group ? _mm256_loadu_ps(kept + t * BLOCK + 8 * h) : _mm256_setzero_ps();
        __m256 part = scaled_sum(c->p, sums[t][h], token + t, c->group, c->block, h);
        totals[t][h] = _mm256_add_ps(before, part);
    }
    if (c->group < c->p->weight.num_groups - 1)
        FOR_SUMS _mm256_storeu_ps(kept + t * BLOCK + 8 * h, totals[t][h]);
    else
        for (int t = 0; t < tokens; t++)
            write_outputs(c->p, c->block, token + t, totals[t][0], totals[t][1]);
}

/* The chunk by some tokens of one panel. */
INLINE void pass_tokens(const chunk *c, int layout, int64_t token, int tokens) {
    const int8_t *values = values_of(c->p, token, c->group);
    int32_t *kept = c->sums + (token - c->first_token) * BLOCK;
    int64_t end = c->first_row + c->num_rows, run = narrow_planes(layout);
    __m256i sums[TOKENS][2], narrow[TOKENS][2];
    FOR_SUMS {
        const __m256i *before = (const __m256i *)(kept + t * BLOCK) + h;
        sums[t][h] = c->first_row ? _mm256_loadu_si256(before) : _mm256_setzero_si256();
    }
    for (int64_t row = c->first_row, stop; row < end; row = stop) {
        stop = min64(row + run, end);
        FOR_SUMS narrow[t][h] = _mm256_setzero_si256();
        for (int64_t count; row < stop; row += count) {
            count = min64(STEP_ROWS - row % STEP_ROWS, stop - row);
            const int8_t *x = values + row / STEP_ROWS * PANEL_BYTES + row % STEP_ROWS * QUAD;
            add_rows(c->rows + (row - c->first_row) * STEP, count, x, tokens, narrow);
        }
        FOR_SUMS sums[t][h] = widen_into(sums[t][h], narrow[t][h]);
    }
    if (end == c->group_rows)
        end_group(c, token, tokens, sums);
    else
        FOR_SUMS _mm256_storeu_si256((__m256i *)(kept + t * BLOCK) + h, sums[t][h]);
}

INLINE void run_layout(const chunk *c, int layout) {
    int64_t token = c->first_token, end = min64(token + SLAB_TOKENS, c->p->num_tokens);
    unpack_chunk(c, layout);
    for (; token + TOKENS <= end; token += TOKENS) pass_tokens(c, layout, token, TOKENS);
    for (; token < end; token++) pass_tokens(c, layout, token, 1);
}

/* Constants, so that each layout gets loops of its own. */
TARGET static void run_chunk(const chunk *c) {
    if (c->p->weight.layout == BITS2)
        run_layout(c, BITS2);
    else if (c->p->weight.layout == BASE3)
        run_layout(c, BASE3);
    else
        run_layout(c, BITS4);
}

void linear_avx2_many(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    chunk c = {.p = p, .rows = scratch};
    int planes = planes_of(p->weight.layout);
    int64_t chunk_rows = CHUNK_ROWS / planes * planes;
    c.sums = (int32_t *)(scratch + CHUNK_ROWS * STEP);
    c.totals = (float *)(c.sums + SLAB_TOKENS * BLOCK);
    c.group_rows = p->group_tiles * planes;
    for (; c.first_token < p->num_tokens; c.first_token += SLAB_TOKENS)
        for (c.block = first; c.block < last; c.block++)
            for (c.group = 0; c.group < p->weight.num_groups; c.group++)
                for (c.first_row = 0; c.first_row < c.group_rows; c.first_row += chunk_rows) {
                    c.num_rows = min64(chunk_rows, c.group_rows - c.first_row);
                    run_chunk(&c);
                }
}
#endif
