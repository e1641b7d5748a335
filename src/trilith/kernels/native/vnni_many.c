/* AVX-512 VNNI for prompts: the codes of two blocks are unpacked a chunk of the inputs at a time.
 *
 * A chunk stays in the nearest cache while a slab of tokens passes, eight at once; what they have
 * added up so far waits in the worker's scratch. Groups may end anywhere in a chunk. */
#include "trilith.h"

#ifdef __x86_64__
#include "avx512.h"

#define TARGET __attribute__((target(AVX512_FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(AVX512_FEATURES)))
/* Unrolled, sums stay in registers; a loop would keep them in memory. */
#define UNROLLED _Pragma("GCC unroll 8")
#define FOR_SUMS \
    UNROLLED for (int t = 0; t < tokens; t++) UNROLLED for (int b = 0; b < BLOCKS; b++)

/* A row is four inputs of a block. Rows of a chunk are 20 KB: planes of both kinds fill it evenly. */
enum { BLOCKS = 2, TOKENS = 8, CHUNK_ROWS = 160, SLAB_TOKENS = 256 };
enum { ROW_BYTES = BLOCKS * STEP, STEP_ROWS = STEP / QUAD, PANEL_BYTES = PANEL * STEP };
enum { SUMS = BLOCKS * BLOCK };

typedef struct {
    const product *p;
    int64_t block[BLOCKS]; /* the second may repeat the first */
    int64_t first_token;   /* of the slab */
    /* The chunk: tiles of a block, counted over all groups, and where the first of them lies. */
    int64_t first_tile, num_tiles, group, tile_in_group;
    uint8_t *rows;  /* [CHUNK_ROWS, BLOCKS, STEP] */
    int32_t *sums;  /* [SLAB_TOKENS, SUMS]: of a group that goes on in the next chunk */
    float *totals;  /* [SLAB_TOKENS, SUMS]: of the groups before */
} chunk;

int64_t vnni_scratch_bytes(void) {
    return CHUNK_ROWS * ROW_BYTES + SLAB_TOKENS * SUMS * (int64_t)(sizeof(int32_t) + sizeof(float));
}

INLINE void unpack_chunk(const chunk *c, int layout) {
    const __m512i levels = levels_of(c->p);
    uint8_t codes[5 * STEP] __attribute__((aligned(64)));
    for (int b = 0; b < BLOCKS; b++) {
        const uint8_t *tile = tiles_of(c->p, c->block[b], 0) + c->first_tile * tile_bytes(layout);
        uint8_t *row = c->rows + b * STEP;
        for (int64_t i = 0; i < c->num_tiles; i++) {
            unpack_tile(tile + i * tile_bytes(layout), levels, layout, codes);
            for (int plane = 0; plane < planes_of(layout); plane++, row += ROW_BYTES)
                _mm512_storeu_si512(row, _mm512_load_si512(codes + plane * STEP));
        }
    }
}

INLINE void add_row(const uint8_t *row, const int8_t *x, int tokens, __m512i (*sums)[BLOCKS]) {
    __m512i codes[BLOCKS];
    UNROLLED for (int b = 0; b < BLOCKS; b++) codes[b] = _mm512_loadu_si512(row + b * STEP);
    UNROLLED for (int t = 0; t < tokens; t++) {
        __m512i four = broadcast(x + t * STEP);
        UNROLLED for (int b = 0; b < BLOCKS; b++) sums[t][b] = dot(sums[t][b], codes[b], four);
    }
}

/* Rows that meet the activations from place `quad` of a group on. */
INLINE void add_rows(
    const uint8_t *row, int64_t num_rows, const int8_t *values, int64_t quad, int tokens,
    __m512i (*sums)[BLOCKS]) {
    const uint8_t *end = row + num_rows * ROW_BYTES;
    while (row < end) {
        int64_t in_step = quad % STEP_ROWS, left = STEP_ROWS - in_step;
        const int8_t *x = values + quad / STEP_ROWS * PANEL_BYTES + in_step * QUAD;
        const uint8_t *stop = row + min64(left * ROW_BYTES, end - row);
        for (; row < stop; row += ROW_BYTES, x += QUAD) add_row(row, x, tokens, sums);
        quad += left;
    }
}

INLINE void write_out(
    const chunk *c, int64_t token, int tokens, __m512 (*totals)[BLOCKS]) {
    const product *p = c->p;
    FOR_SUMS {
        int64_t at = c->block[b] * BLOCK, width = min64(BLOCK, p->weight.num_out - at);
        __m512 scale = _mm512_set1_ps(p->scale[token + t]);
        _mm512_mask_storeu_ps(
            p->out + (token + t) * p->weight.num_out + at, (__mmask16)(0xffff >> (BLOCK - width)),
            _mm512_mul_ps(totals[t][b], scale));
    }
}

/* Scale the sums of a group and add them to the totals, which go to the outputs after the last. */
INLINE void end_group(
    const chunk *c, int64_t group, int64_t token, int tokens, __m512i (*sums)[BLOCKS],
    float *kept) {
    const product *p = c->p;
    int64_t num_groups = p->weight.num_groups;
    const float *factor = p->weight.factor + group * p->num_blocks * BLOCK;
    __m512 totals[TOKENS][BLOCKS];
    FOR_SUMS {
        __m512i shift = _mm512_set1_epi32(p->sums[(token + t) * num_groups + group]);
        __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[t][b], shift));
        __m512 part = _mm512_mul_ps(sum, _mm512_loadu_ps(factor + c->block[b] * BLOCK));
        const float *before = kept + t * SUMS + b * BLOCK;
        __m512 total = group ? _mm512_loadu_ps(before) : _mm512_setzero_ps();
        totals[t][b] = _mm512_add_ps(total, part);
    }
    if (group == num_groups - 1)
        write_out(c, token, tokens, totals);
    else
        FOR_SUMS _mm512_storeu_ps(kept + t * SUMS + b * BLOCK, totals[t][b]);
}

/* A chunk by some tokens of one panel. */
INLINE void pass_tokens(const chunk *c, int64_t token, int tokens) {
    const product *p = c->p;
    int64_t panel_groups = token / PANEL * p->weight.num_groups, planes = planes_of(p->weight.layout);
    int64_t at = (token - c->first_token) * SUMS, group_bytes = p->group_steps * PANEL_BYTES;
    const int8_t *panel = p->values + panel_groups * group_bytes + token % PANEL * STEP;
    const uint8_t *row = c->rows;
    int32_t *kept = c->sums + at;
    int64_t group = c->group, begin = c->tile_in_group, left = c->num_tiles;
    for (int64_t count; left > 0; left -= count, group++, begin = 0) {
        count = min64(left, p->group_tiles - begin);
        __m512i sums[TOKENS][BLOCKS];
        if (begin)
            FOR_SUMS sums[t][b] = _mm512_loadu_si512(kept + t * SUMS + b * BLOCK);
        else
            FOR_SUMS sums[t][b] = _mm512_setzero_si512();
        const int8_t *values = panel + group * group_bytes;
        add_rows(row, count * planes, values, begin * planes, tokens, sums);
        row += count * planes * ROW_BYTES;
        if (begin + count == p->group_tiles)
            end_group(c, group, token, tokens, sums, c->totals + at);
        else
            FOR_SUMS _mm512_storeu_si512(kept + t * SUMS + b * BLOCK, sums[t][b]);
    }
}

INLINE void run_chunk(const chunk *c, int64_t end_token) {
    /* Constants, so that each layout gets loops of its own. */
    if (c->p->weight.layout == BITS2)
        unpack_chunk(c, BITS2);
    else if (c->p->weight.layout == BASE3)
        unpack_chunk(c, BASE3);
    else
        unpack_chunk(c, BITS4);
    int64_t token = c->first_token;
    for (; token + 8 <= end_token; token += 8) pass_tokens(c, token, 8);
    for (; token + 2 <= end_token; token += 2) pass_tokens(c, token, 2);
    for (; token < end_token; token++) pass_tokens(c, token, 1);
}

TARGET void linear_vnni_many(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    chunk c = {.p = p, .rows = scratch};
    c.sums = (int32_t *)(scratch + CHUNK_ROWS * ROW_BYTES);
    c.totals = (float *)(c.sums + SLAB_TOKENS * SUMS);
    int64_t chunk_tiles = CHUNK_ROWS / planes_of(p->weight.layout);
    int64_t tiles = p->weight.num_groups * p->group_tiles;
    for (; c.first_token < p->num_tokens; c.first_token += SLAB_TOKENS) {
        int64_t end_token = min64(c.first_token + SLAB_TOKENS, p->num_tokens);
        for (int64_t at = first; at < last; at += BLOCKS) {
            for (int b = 0; b < BLOCKS; b++) c.block[b] = min64(at + b, last - 1);
            for (c.first_tile = 0; c.first_tile < tiles; c.first_tile += chunk_tiles) {
                c.num_tiles = min64(chunk_tiles, tiles - c.first_tile);
                c.group = c.first_tile / p->group_tiles;
                c.tile_in_group = c.first_tile % p->group_tiles;
                run_chunk(&c, end_token);
            }
        }
    }
}
#endif
