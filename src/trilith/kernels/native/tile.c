/* Weights into the tiles of trilith.h. */
#include "trilith.h"

typedef struct {
    const weight *w;
    const int8_t *numerators; /* [num_out, num_in] */
    const uint8_t *code_of;   /* [numerator + offset], for 4 bits */
    uint8_t *tiles;
} tiling;

/* Codes of up to 16 inputs of one output; zeros behind them. */
static inline void codes_of(const tiling *t, const int8_t *numerators, int64_t count, uint8_t *codes) {
    memset(codes, 0, TILE_IN);
    if (t->w->bits == 2 && count == TILE_IN)
        for (int i = 0; i < TILE_IN; i++) codes[i] = (uint8_t)(numerators[i] + 1);
    else
        for (int64_t i = 0; i < count; i++)
            codes[i] = t->code_of[numerators[i] + t->w->offset];
}

/* Four codes a word; shifted codes stay in their bytes, so that all four move at once. */
static inline void put_codes(const uint8_t *codes, int64_t bits, uint8_t *at) {
    uint32_t plane[4];
    memcpy(plane, codes, sizeof plane);
    if (bits == 2) {
        uint32_t word = plane[0] | plane[1] << 2 | plane[2] << 4 | plane[3] << 6;
        memcpy(at, &word, sizeof word);
        return;
    }
    uint32_t words[2] = {plane[0] | plane[1] << 4, plane[2] | plane[3] << 4};
    memcpy(at, &words[0], sizeof words[0]);
    memcpy(at + STEP, &words[1], sizeof words[1]);
}

static void tile_block(void *context, int64_t block, int worker) {
    const tiling *t = context;
    const weight *w = t->w;
    (void)worker;
    int64_t group_in = w->num_in / w->num_groups;
    int64_t group_tiles = ceil_div(group_in, TILE_IN);
    int64_t tile_bytes = BLOCK * TILE_IN / 8 * w->bits;
    uint8_t *tiles = t->tiles + block * w->num_groups * group_tiles * tile_bytes;
    uint8_t codes[TILE_IN];
    for (int64_t o = 0; o < BLOCK; o++) {
        int64_t row = block * BLOCK + o;
        for (int64_t tile = 0; tile < w->num_groups * group_tiles; tile++) {
            int64_t i = tile % group_tiles * TILE_IN;
            int64_t at = row * w->num_in + tile / group_tiles * group_in + i;
            int64_t count = row < w->num_out ? min64(TILE_IN, group_in - i) : 0;
            codes_of(t, t->numerators + (count ? at : 0), count, codes);
            put_codes(codes, w->bits, tiles + tile * tile_bytes + o * 4);
        }
    }
}

/* Put numerators [num_out, num_in] into tiles, all of whose bytes are written. */
void trilith_tile(
    const weight *w, const int8_t *numerators, const uint8_t *code_of, uint8_t *tiles,
    int64_t threads) {
    tiling t = {w, numerators, code_of, tiles};
    run_chunks((int)threads, ceil_div(w->num_out, BLOCK), tile_block, &t);
}
